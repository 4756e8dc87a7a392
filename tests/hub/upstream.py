"""A web server for a cave's bare Python: says what it was asked, streams, and echoes over WebSocket."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import struct
import sys
import threading
import time
from typing import Any

SEEN = threading.Semaphore(0)
# Chunks come before the size that is told too: RFC 9112, section 6.3.
TWICE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nwhole\r\n0\r\n\r\n"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.echo()
        path = self.path.partition("?")[0]
        if path == "/events":
            return self.events()
        if path == "/seen":
            SEEN.release()
            return self.answer(200, b"")
        if path.startswith("/bytes/"):
            return self.count(int(path.rpartition("/")[2]))
        if path == "/redirect":
            return self.answer(302, b"", Location=f"http://{self.headers['Host']}/there?x=1")
        if path == "/liar":
            return self.liar()
        if path == "/headers":
            return self.raw(b"HTTP/1.1 200 OK\r\n" + b"X-Y: " + b"y" * (1 << 20) + b"\r\n\r\n")
        if path == "/odd":
            return self.raw(b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nno")
        if path == "/sized-twice":
            return self.raw(TWICE)
        if path == "/sized-nothing":
            return self.raw(b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n")
        if path == "/close":
            return self.raw(b"")
        return self.tell()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.tell()

    def tell(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        digest = hashlib.sha256()
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while length := int(self.rfile.readline(), 16):
                digest.update(self.rfile.read(length))
                self.rfile.readline()
                size += length
            self.rfile.readline()
        else:
            left = size
            while left:
                piece = self.rfile.read(min(left, 1 << 16))
                digest.update(piece)
                left -= len(piece)
        told = {
            "method": self.command,
            "path": self.path,
            "headers": [[k.lower(), v] for k, v in self.headers.items()],
            "size": size,
            "sha256": digest.hexdigest(),
        }
        self.answer(200, json.dumps(told).encode())

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def liar(self) -> None:
        self.send_response(200)
        for name, value in (
            ("Set-Cookie", "mine=1; Path=/app; Domain=localhost; HttpOnly"),
            ("Set-Cookie", "ghost-token-8000=stolen; Path=/"),
            ("Set-Cookie", "__Host-other=1; Path=/; Secure"),
            ("Strict-Transport-Security", "max-age=9"),
            ("Clear-Site-Data", '"*"'),
            ("Access-Control-Allow-Origin", "*"),
            ("Connection", "close, X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("WWW-Authenticate", "Basic realm=yours"),
            ("Accept-CH", "Sec-CH-UA-Model"),
            ("X-Accel-Redirect", "/v1/caves"),
            ("X-Sendfile", "/etc/passwd"),
            ("Content-Length", "2"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"ok")

    def raw(self, data: bytes) -> None:
        self.close_connection = True
        self.wfile.write(data)

    def events(self) -> None:
        """Three events, each once somebody has said that the one before was seen."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        for number in range(3):
            self.wfile.write(f"data: {number}\n\n".encode())
            self.wfile.flush()
            SEEN.acquire()

    def count(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        piece = b"g" * (1 << 16)
        while size and self.command != "HEAD":
            self.wfile.write(piece[: min(size, len(piece))])
            size -= min(size, len(piece))

    def echo(self) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()  # noqa: S324
        self.send_response(101)
        for name, value in (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.frame(1, json.dumps([[k.lower(), v] for k, v in self.headers.items()]).encode())
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            size = head[1] & 127
            if size > 125:
                size = int.from_bytes(self.rfile.read(2 if size == 126 else 8), "big")
            mask = self.rfile.read(4)
            data = self.rfile.read(size)
            data = (
                bytes(b ^ mask[i % 4] for i, b in enumerate(data))
                if size < 4096
                else self.unmask(data, mask)
            )
            self.frame(head[0] & 15, data)
            if head[0] & 15 == 8:
                return

    def unmask(self, data: bytes, mask: bytes) -> bytes:
        whole = (mask * (len(data) // 4 + 1))[: len(data)]
        return (int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")).to_bytes(
            len(data), "big"
        )

    def frame(self, opcode: int, data: bytes) -> None:
        size = len(data)
        head = (
            bytes([128 | opcode, size])
            if size < 126
            else (
                bytes([128 | opcode, 126]) + struct.pack("!H", size)
                if size < 65536
                else bytes([128 | opcode, 127]) + struct.pack("!Q", size)
            )
        )
        self.wfile.write(head + data)
        self.wfile.flush()


if __name__ == "__main__":
    time.sleep(float(sys.argv[2]))
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()

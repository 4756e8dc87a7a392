"""A registry of images on loopback, with one image: what an engine needs to pull it, and nothing else."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["registry"]

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@contextmanager
def registry(name: str, architecture: str, *, layer_bytes: int) -> Iterator[str]:
    """Serve an image with one file, ``/blob``; yields ``HOST:PORT/NAME:latest``. Engines take it without TLS."""
    things = _image(architecture, layer_bytes)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind, data = things.get(self.path.removeprefix(f"/v2/{name}/"), ("", b""))
            found = bool(kind) or self.path == "/v2/"
            if not kind:
                error = {"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}
                kind, data = "application/json", json.dumps({"errors": [error]}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Docker-Content-Digest", _digest(data))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: tests print what they find themselves."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}/{name}:latest"
        finally:
            server.shutdown()
            thread.join()


def _image(architecture: str, layer_bytes: int) -> dict[str, tuple[str, bytes]]:
    """What is served, by its path below the image's name: its content type and itself."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("blob")
        entry.size = layer_bytes
        archive.addfile(entry, io.BytesIO(os.urandom(layer_bytes)))
    layer = gzip.compress(packed.getvalue(), 1)
    about = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [_digest(packed.getvalue())]},
    }
    config = json.dumps(about).encode()
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _described(CONFIG, config),
        "layers": [_described(LAYER, layer)],
    }
    told = json.dumps(manifest).encode()
    return {
        "manifests/latest": (MANIFEST, told),
        f"manifests/{_digest(told)}": (MANIFEST, told),
        f"blobs/{_digest(config)}": ("application/octet-stream", config),
        f"blobs/{_digest(layer)}": ("application/octet-stream", layer),
    }


def _described(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "size": len(data), "digest": _digest(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"

"""I5, B2 and D1 with an allow list: only what is listed is reached, from programs, pages and documents."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from ghost_hub.server import hub_calls
from ghost_mcp import Cave, CaveSpec, Ghost, NetworkPolicy
from ghost_mcp.egress import dial
from ghost_mcp.egress.service import SPARE
from ghost_mcp.errors import GhostError
from ghost_mcp.places import Places, SessionCaves
from ghost_mcp.reply import Reply

NAME = "listed.example"


class Outside:
    """A server on the host's loopback, and what was asked of it."""

    def __init__(self) -> None:
        asked: list[str] = []

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                target = self.path.partition("?to=")[2]
                self.send_response(302 if target else 200)
                if target:
                    self.send_header("Location", target)
                body = b"" if target else b"<title>outside</title><p>outside"
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *about: object) -> None:
                return

        self.asked = asked
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.port = self.server.server_port


@pytest.fixture
def outside() -> Iterator[Outside]:
    with _serving() as server:
        yield server


@pytest.fixture
def hidden() -> Iterator[Outside]:
    """What no rule lists: a service of the host."""
    with _serving() as server:
        yield server


class _serving:
    def __enter__(self) -> Outside:
        self.made = Outside()
        self.thread = Thread(target=self.made.server.serve_forever)
        self.thread.start()
        return self.made

    def __exit__(self, *exc: object) -> None:
        self.made.server.shutdown()
        self.thread.join()
        self.made.server.server_close()


@pytest.fixture
async def cave(
    ghost: Ghost, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cave]:
    """A cave that may reach the one server, by its name."""
    known = {NAME: ["127.0.0.1"], "rebound.example": ["127.0.0.1"]}
    monkeypatch.setattr(dial, "look_up", lambda name, port: known[name])
    rules = (f"{NAME}:{outside.port}", f"127.0.0.1:{outside.port}", "rebound.example:*")
    network = NetworkPolicy(mode="allow", allow=rules)
    made = await ghost.create(CaveSpec(ephemeral=True, network=network))
    yield made
    await made.destroy()


async def call(ghost: Ghost, cave: Cave, tool: str, **arguments: object) -> Reply | GhostError:
    async with Places(ghost) as places, SessionCaves(places, pinned=cave.name) as caves:
        return (await hub_calls().run(caves, tool, arguments)).outcome


RELAY = """
import os, socket, threading
proxy = ("127.0.0.1", int(os.environ["http_proxy"].rpartition(":")[2]))
server = socket.create_server(("127.0.0.1", 8888))
print("ready", flush=True)
client, _ = server.accept()
far = socket.create_connection(proxy)
def copy(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
threading.Thread(target=copy, args=(client, far)).start()
copy(far, client)
"""


async def test_i5_only_what_is_listed_is_reached(
    cave: Cave, outside: Outside, hidden: Outside
) -> None:
    listed = f"http://{NAME}:{outside.port}"
    assert "outside" in (await cave.exec(["curl", "-sS", listed])).stdout
    for port, host in (
        *((hidden.port, host) for host in (NAME, "127.0.0.1", "2130706433", "[::ffff:127.0.0.1]")),
        *((hidden.port, host) for host in ("rebound.example", "unlisted.example")),
        (80, "169.254.169.254"),
        (80, "[fd00:ec2::254]"),
    ):
        words = ["curl", "-sS", "--noproxy", "", f"http://{host}:{port}/"]
        assert '"blocked"' in (await cave.exec(words)).stdout, host
        direct = await cave.exec([*words[:2], "-x", "", "--max-time", "5", words[-1]])
        assert direct.exit_code != 0
    await cave.write("relay.py", RELAY)
    relayed = (
        "python3 relay.py >ready & until [ -s ready ]; do sleep 0.05; done; "
        f"curl -sS -x http://127.0.0.1:8888 --noproxy '' http://127.0.0.1:{hidden.port}/"
    )
    assert '"blocked"' in (await cave.exec(relayed, timeout_s=30)).stdout
    assert hidden.asked == []
    assert outside.asked == ["/"]


async def test_i5_a_cave_with_rules_has_no_interface_but_loopback(cave: Cave) -> None:
    shown = (await cave.exec("cat /proc/net/dev /proc/net/route")).stdout
    assert [line.split(":")[0].strip() for line in shown.splitlines() if ":" in line] == ["lo"]


async def test_what_was_refused_during_a_call_is_told_with_its_result(
    ghost: Ghost, cave: Cave, hidden: Outside
) -> None:
    blocked = f"127.0.0.1:{hidden.port}"
    command = f"curl -sS --noproxy '' http://{blocked}/ -o /dev/null; curl -sS https://{NAME}"
    reply = await call(ghost, cave, "shell_exec", command=command)
    assert isinstance(reply, Reply)
    assert [one["blocked"] for one in reply.data["blocked"]] == [blocked, f"{NAME}:443"]
    assert set(reply.data["blocked"][0]) == {"blocked", "rule", "why", "how_to_allow"}
    assert f"Blocked: {blocked}: " in reply.text
    assert f"ghost allow {cave.name} {blocked}" in reply.text
    quiet = await call(ghost, cave, "shell_exec", command="true")
    assert isinstance(quiet, Reply)
    assert "blocked" not in quiet.data


async def test_b2_pages_reach_what_is_listed_and_no_redirect_leads_further(
    ghost: Ghost, cave: Cave, outside: Outside, hidden: Outside
) -> None:
    listed = f"http://{NAME}:{outside.port}"
    reply = await call(ghost, cave, "browser_navigate", url=listed)
    assert isinstance(reply, Reply), reply
    assert "outside" in json.dumps(reply.data)
    for url in (
        f"http://rebound.example:{hidden.port}/",
        f"http://{NAME}:{hidden.port}/",
        f"{listed}/?to=http://rebound.example:{hidden.port}/",
        f"{listed}/?to=https://{NAME}:{hidden.port}/",
        f"https://{NAME}:{hidden.port}/",
    ):
        outcome = await call(ghost, cave, "browser_navigate", url=url)
        assert "blocked" in outcome.data, (url, outcome)
        blocked = " ".join(one["blocked"] for one in outcome.data["blocked"])
        assert str(hidden.port) in blocked
    # Chromium never asks a proxy for such an address, and has no other way.
    metadata = "http://169.254.169.254/latest/meta-data/"
    assert isinstance(await call(ghost, cave, "browser_navigate", url=metadata), GhostError)
    assert hidden.asked == []
    asked_for = {step["target"].partition(":")[0] for step in cave.connections()}
    assert asked_for == {NAME, "rebound.example"}


async def test_d1_documents_fetch_nothing_from_the_host(
    ghost: Ghost, cave: Cave, hidden: Outside
) -> None:
    for uri in (f"http://127.0.0.1:{hidden.port}/x.html", "http://169.254.169.254/"):
        outcome = await call(ghost, cave, "markitdown_convert", source=uri)
        assert isinstance(outcome, GhostError)
    assert hidden.asked == []


MANY = """
import contextlib, os, select, socket
port = int(os.environ["http_proxy"].rpartition(":")[2])
held = []
for _ in range(WANTED):
    one = socket.create_connection(("127.0.0.1", port))
    held.append(one)
    with contextlib.suppress(OSError):  # it was let go already
        one.sendall(b"GET http://a.example/ HTTP/1.1\\r\\nX: ")
gone = select.select(held, [], [], 20)[0]
print("let go" if gone else "all held")
"""


async def test_i5_connections_that_ask_for_nothing_are_bounded(ghost: Ghost) -> None:
    """Each holds what it has said so far in the hub's memory."""
    network = NetworkPolicy(mode="allow", allow=(NAME,), connections=1)
    async with await ghost.create(CaveSpec(ephemeral=True, network=network)) as cave:
        program = MANY.replace("WANTED", str(SPARE + 20))
        done = await cave.exec(["python3", "-c", program])
        assert done.stdout == "let go\n", done.stderr

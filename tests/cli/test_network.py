"""A cave's network from the command line: who serves it, what it may reach, and where it went."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from .conftest import GHOST, PATIENCE_S, Cli, document

CURL = "curl -sS --noproxy '' --max-time 20 http://127.0.0.1:{port}/"


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "8")
        self.end_headers()
        self.wfile.write(b"outside\n")

    def log_message(self, *about: object) -> None:
        return


@pytest.fixture(scope="module")
def outside() -> Iterator[int]:
    """The port of a server on the host's loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def fetch(cli: Cli, cave: str, port: int) -> str:
    done = cli("exec", cave, "--language", "bash", CURL.format(port=port))
    return done.stdout.decode()


def test_exec_serves_the_network_and_allow_widens_it(cli: Cli, outside: int) -> None:
    cli("create", "net", "--allow", "a.example", "--allow", "@pip")
    try:
        refused = fetch(cli, "net", outside)
        assert f'"blocked": "127.0.0.1:{outside}"' in refused
        assert f"ghost allow net 127.0.0.1:{outside}" in refused
        told = document(cli("allow", "net", f"127.0.0.1:{outside}", "--for", "10m", "--json"))
        assert told["until"] > 0
        assert fetch(cli, "net", outside) == "outside\n"
        steps = document(cli("egress", "net", "--json"))
        assert [step["event"] for step in steps] == ["refused", "open", "closed"]
        shown = cli("egress", "net").stdout.decode().splitlines()
        assert f"127.0.0.1:{outside}" in shown[0]
        assert "not on this cave's list by number" in shown[0]
        assert cli("info", "net").stdout.decode().count("allow a.example @pip") == 1
        cli("allow", "net", f"127.0.0.1:{outside}", "--for", "0.01s")
        assert '"blocked"' in fetch(cli, "net", outside)
    finally:
        cli("destroy", "net")


def test_who_follows_serves_what_runs_on_its_own(
    cli: Cli, outside: int, environment: dict[str, str]
) -> None:
    cli("create", "followed", "--allow", f"127.0.0.1:{outside}")
    # Until somebody serves it: who follows may take a while to be there.
    asked = f"{CURL.format(port=outside)} --fail >out 2>/dev/null"
    background = f"(until {asked}; do sleep 0.2; done) & disown"
    try:
        cli("exec", "followed", "--language", "bash", f"setsid bash -c {background!r}")
        with subprocess.Popen(
            [*GHOST, "egress", "followed", "--follow"], stdout=subprocess.PIPE, env=environment
        ) as follower:
            assert follower.stdout is not None
            steps = [follower.stdout.readline().decode().split()[1] for _ in range(2)]
            assert steps == ["open", "closed"]
            follower.terminate()
            follower.wait(PATIENCE_S)
        assert cli("exec", "followed", "--", "cat", "out").stdout == b"outside\n"
    finally:
        cli("destroy", "followed")

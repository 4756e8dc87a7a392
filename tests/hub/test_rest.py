"""REST through a served hub: each route, in a real cave, as curl would use it."""

from __future__ import annotations

import base64
import io
import json
import os
import secrets
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import docx
import httpx2
import pytest

from ghost_mcp import audit
from tests.serving import Served, serving


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an owner that nobody else is."""
    token = served.make_token(owner=f"rest-{secrets.token_hex(3)}")
    async with served.client(token) as client:
        yield client
        for cave in (await client.get("/v1/caves")).json()["caves"]:
            await client.delete(f"/v1/caves/{cave['id']}")


async def post(
    http: httpx2.AsyncClient, url: str, status: int = 200, /, **body: Any
) -> dict[str, Any]:
    answer = await http.post(url, json=body)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """A problem document, complete."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = answer.json()
    assert told["status"] == status
    assert told["code"] == code
    assert told["type"] == f"urn:ghost:error:{code}"
    assert told["detail"]
    return told


async def test_the_examples_as_they_are_written(http: httpx2.AsyncClient) -> None:
    done = await post(http, "/v1/shell/exec", command='python -c "print(2+2)"', timeout=30)
    assert (done["stdout"], done["exit_code"]) == ("4\n", 0)
    content = base64.b64encode(b"\0\1binary\xff").decode()
    await post(http, "/v1/file/write", path="a.bin", content_base64=content)
    read = await post(http, "/v1/file/read", path="a.bin", encoding="base64")
    assert read["content"] == content
    listed = await post(http, "/v1/file/list", path=".")
    assert [entry["path"] for entry in listed["entries"]] == ["a.bin"]
    up = await post(http, "/v1/filesystem/upload", 201, path="sub/b.bin", content_base64=content)
    assert up["created"]
    down = await http.post("/v1/filesystem/download", json={"path": "sub/b.bin"})
    assert down.content == b"\0\1binary\xff"


async def test_a_sandbox_in_the_words_of_the_examples(http: httpx2.AsyncClient) -> None:
    body = {
        "name": "dev-cave",
        "cave_type": "Local",
        "config": {"cpu_limit": 2.0, "memory_limit": 512, "environment": {"COLOUR": "blue"}},
    }
    answer = await http.post("/v1/sandbox", json=body)
    assert answer.status_code == 201
    assert answer.headers["location"] == "/v1/caves/dev-cave"
    made = answer.json()
    assert made["spec"]["limits"]["memory_bytes"] == 512 << 20
    assert made["spec"]["limits"]["cpus"] == 2.0
    assert made["state"] == "running"
    listed = (await http.get("/v1/sandbox")).json()["caves"]
    assert [cave["name"] for cave in listed] == ["dev-cave"]
    done = await post(http, "/v1/shell/exec", command="echo $COLOUR", cave="dev-cave")
    assert done["stdout"] == "blue\n"
    assert (await http.delete(f"/v1/sandbox/{made['id']}")).json() == {"destroyed": made["id"]}
    assert (await http.get("/v1/sandbox")).json() == {"caves": []}


async def test_a_cave_s_life(http: httpx2.AsyncClient) -> None:
    await post(http, "/v1/caves", 201, name="one")
    refused(await http.post("/v1/caves", json={"name": "one"}), 409, "conflict")
    await post(http, "/v1/file/write", path="kept.txt", content="x", cave="one")
    assert (await post(http, "/v1/caves/one/stop"))["state"] == "stopped"
    refused(
        await http.post("/v1/shell/exec", json={"command": "true", "cave": "one"}), 409, "conflict"
    )
    assert (await post(http, "/v1/caves/one/start"))["state"] == "running"
    headers = {"Ghost-Cave": "one"}
    read = await http.post("/v1/file/read", json={"path": "kept.txt"}, headers=headers)
    assert read.json()["content"] == "x"
    stats = (await http.get("/v1/caves/one/stats")).json()
    assert stats["usage"]["pids"] >= 1
    assert stats["limits"]["pids"] == 1024
    assert (await http.get("/v1/caves/one/logs")).status_code == 200
    assert (await http.get("/v1/caves/one")).json()["assurance"]["network"]["enforced"]
    await http.delete("/v1/caves/one")
    refused(await http.get("/v1/caves/one"), 404, "cave_not_found")
    refused(await http.delete("/v1/caves/one"), 404, "cave_not_found")


async def test_the_default_cave_is_made_once_and_keeps_its_files(http: httpx2.AsyncClient) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(8):
            line = f"echo {number} > {number}"
            tasks.start_soon(lambda line=line: post(http, "/v1/shell/exec", command=line))
    listed = (await http.get("/v1/caves")).json()["caves"]
    assert [cave["name"] for cave in listed] == ["default"]
    done = await post(http, "/v1/shell/exec", command="ls | tr '\\n' ' '")
    assert done["stdout"] == "0 1 2 3 4 5 6 7 "


async def test_the_default_cave_comes_back_when_it_has_ended(http: httpx2.AsyncClient) -> None:
    await post(http, "/v1/file/write", path="kept.txt", content="x")
    async with anyio.create_task_group() as tasks:  # the call goes down with its cave
        tasks.start_soon(lambda: http.post("/v1/shell/exec", json={"command": "kill -TERM 1"}))
    with anyio.fail_after(60):
        while (await http.get("/v1/caves/default")).json()["state"] == "running":
            await anyio.sleep(0.05)
    assert (await post(http, "/v1/file/read", path="kept.txt"))["content"] == "x"


async def test_sessions(http: httpx2.AsyncClient) -> None:
    assert (await post(http, "/v1/shell/sessions", name="s"))["session"] == "s"
    await post(http, "/v1/shell/exec", command="X=1; cd /tmp", session="s")
    done = await post(http, "/v1/shell/exec", command="echo $X $PWD", session="s")
    assert done["stdout"] == "1 /tmp\n"
    assert (await http.delete("/v1/shell/sessions/s")).status_code == 200
    gone = await http.post("/v1/shell/exec", json={"command": "true", "session": "s"})
    refused(gone, 404, "session_not_found")
    started = await post(http, "/v1/shell/exec", command="sleep 100", background=True)
    killed = await post(http, "/v1/shell/kill", command_id=started["command_id"])
    assert killed["ended"] == [started["command_id"]]


async def test_search_and_replace(http: httpx2.AsyncClient) -> None:
    await post(http, "/v1/file/write", path="a.txt", content="one two\n")
    found = await post(http, "/v1/file/search", pattern="two")
    assert [match["path"] for match in found["matches"]] == ["a.txt"]
    changed = await post(http, "/v1/file/replace", path="a.txt", old="two", new="three")
    assert changed["replaced"] == 1
    assert (await post(http, "/v1/file/read", path="a.txt"))["content"] == "one three\n"


async def test_documents(http: httpx2.AsyncClient) -> None:
    document, packed = docx.Document(), io.BytesIO()
    document.add_paragraph("Some text.")
    document.save(packed)
    await http.post("/v1/filesystem/upload?path=report.docx", content=packed.getvalue())
    done = await post(http, "/v1/markitdown/convert", path="report.docx")
    assert "Some text." in done["markdown"]
    done = await post(http, "/v1/markitdown/extract_text", path="report.docx")
    assert "Some text." in done["content"]
    done = await post(http, "/v1/markitdown/extract_images", path="report.docx")
    assert done["found"] == 0


async def test_the_browser(http: httpx2.AsyncClient) -> None:
    page = "<title>T</title><input id=q><button onclick=\"document.title='clicked'\">Go</button>"
    await post(http, "/v1/file/write", path="index.html", content=page + "<p>x" * 500)
    await post(http, "/v1/shell/exec", command="python3 -m http.server 5000", background=True)
    there = await post(
        http,
        "/v1/shell/exec",
        command="for i in $(seq 100); do curl -s localhost:5000 >/dev/null && break; sleep 0.1; done",
    )
    assert there["exit_code"] == 0
    seen = await post(http, "/v1/browser/navigate", url="http://localhost:5000")
    assert seen["title"] == "T"
    await post(http, "/v1/browser/type", text="hello", selector="#q")
    assert (await post(http, "/v1/browser/click", text="Go"))["title"] == "clicked"
    await post(http, "/v1/browser/scroll", direction="down")
    shot = await post(http, "/v1/browser/screenshot")
    assert base64.b64decode(shot["pictures"][0]["data_base64"]).startswith(b"\x89PNG")
    raw = await http.get("/v1/browser/screenshot", headers={"Accept": "image/png"})
    assert raw.headers["content-type"] == "image/png"
    assert raw.content.startswith(b"\x89PNG")


async def test_execute_and_the_list_of_tools(http: httpx2.AsyncClient) -> None:
    servers = (await http.get("/mcp/tools")).json()["servers"]
    assert [server["name"] for server in servers] == ["browser", "file", "shell", "markitdown"]
    assert sum(len(server["tools"]) for server in servers) == 16
    done = await post(http, "/mcp/execute", tool="shell_exec", arguments={"command": "echo hi"})
    assert done["stdout"] == "hi\n"
    refused(await http.post("/mcp/execute", json={"tool": "no_such"}), 404, "not_found")
    refused(await http.post("/mcp/execute", json={}), 400, "invalid_argument")
    refused(
        await http.post("/mcp/execute", json={"tool": "shell_exec", "arguments": []}),
        400,
        "invalid_argument",
    )


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/shell/exec", b"not json", "invalid_argument"),
        ("/v1/shell/exec", b"[1]", "invalid_argument"),
        ("/v1/shell/exec", b"[" * 200_000, "invalid_argument"),
        ("/v1/shell/exec", b'{"command": ' + b"[" * 900 + b"]" * 900 + b"}", "invalid_argument"),
        ("/v1/caves", b'{"env": ' + b"[" * 900 + b"]" * 900 + b"}", "invalid_argument"),
        ("/v1/shell/exec", b'{"command": 5}', "invalid_argument"),
        ("/v1/shell/exec", b'{"command": "true", "nope": 1}', "invalid_argument"),
        ("/v1/shell/exec", b'{"command": "true", "timeout": 1, "timeout_s": 1}', "invalid_argument"),
        ("/v1/shell/exec", b'{"command": "true", "cave": 7}', "invalid_argument"),
        ("/v1/shell/exec", b'{"command": "true", "cave": "../x"}', "invalid_argument"),
        ("/v1/file/read", b'{"path": "a\\u0000b"}', "invalid_path"),
        ("/v1/file/read", b'{"path": "\\ud800"}', "invalid_argument"),
        ("/v1/file/read", b"{}", "invalid_argument"),
        ("/v1/caves", b'{"name": "Not A Name"}', "invalid_argument"),
        ("/v1/caves", b'{"workspace": "/etc"}', "invalid_argument"),
        ("/v1/caves", b'{"mounts": {"/x": "/etc"}}', "invalid_argument"),
        ("/v1/caves", b'{"secrets": ["HOME"]}', "invalid_argument"),
        ("/v1/caves", b'{"backend": "no-such"}', "invalid_argument"),
        ("/v1/caves", json.dumps({"labels": {f"a{n}": "" for n in range(65)}}).encode(), "invalid_argument"),
        ("/v1/sandbox", b'{"config": {"memory_limit": -5}}', "invalid_argument"),
        ("/v1/sandbox", b'{"config": {"memory_limit": 1e400}}', "invalid_argument"),
        ("/v1/filesystem/upload", b'{"path": "x", "content_base64": "!"}', "invalid_argument"),
    ],
)  # fmt: skip
async def test_bad_bodies_are_refused_with_the_place(
    http: httpx2.AsyncClient, path: str, body: bytes, code: str
) -> None:
    headers = {"Content-Type": "application/json"}
    refused(await http.post(path, content=body, headers=headers), 400, code)


async def test_a_folder_of_the_host_cannot_be_an_image(http: httpx2.AsyncClient) -> None:
    refused(await http.post("/v1/caves", json={"image": "/"}), 403, "permission_refused")


async def test_gpus_are_for_who_may_have_them(http: httpx2.AsyncClient, served: Served) -> None:
    """Whoever may gets the engine's own answer: a local cave has none."""
    for path, body in (
        ("/v1/caves", {"gpus": "all"}),
        ("/v1/sandbox", {"config": {"gpus": "all"}}),
    ):
        refused(await http.post(path, json=body), 403, "permission_refused")
        async with served.client() as admin:
            refused(await admin.post(path, json=body), 501, "unsupported")
            wrong = json.loads(json.dumps(body).replace("all", "many"))
            refused(await admin.post(path, json=wrong), 400, "invalid_argument")


async def test_what_is_not_there_and_wrong_methods(http: httpx2.AsyncClient) -> None:
    refused(await http.get("/v1/nothing"), 404, "not_found")
    wrong = await http.get("/v1/shell/exec")
    assert refused(wrong, 405, "wrong_method")["hint"] == "It takes POST."
    assert wrong.headers["allow"] == "POST"
    refused(await http.get("/v1/caves?nope=1"), 400, "invalid_argument")
    told = refused(await http.post("/v1/caves", json={"nmae": "x"}), 400, "invalid_argument")
    assert told["detail"] == "nmae: no such field"


# --- files of any size ---------------------------------------------------------------------------


async def test_upload_and_download_stream(http: httpx2.AsyncClient) -> None:
    data = os.urandom(3 << 20)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    up = await http.post("/v1/filesystem/upload?path=dir/big.bin", content=pieces())
    assert up.status_code == 201
    assert up.json()["size"] == len(data)
    down = await http.get("/v1/filesystem/download?path=dir/big.bin")
    assert down.content == data
    assert down.headers["etag"] == f'"{up.json()["version"]}"'
    assert down.headers["content-length"] == str(len(data))
    assert "big.bin" in down.headers["content-disposition"]
    head = await http.head("/v1/filesystem/download?path=dir/big.bin")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(data))


@pytest.mark.parametrize(
    ("asked", "status", "begin", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=10-", 206, 10, 1000),
        ("bytes=-5", 206, 995, 1000),
        ("bytes=0-999", 200, 0, 1000),
        ("bytes=990-5000", 206, 990, 1000),
        ("bytes=1000-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=5-2", 200, 0, 1000),
        ("bytes=0-1,3-4", 200, 0, 1000),
        ("chapters=1-2", 200, 0, 1000),
    ],
)
async def test_ranges(
    http: httpx2.AsyncClient, asked: str, status: int, begin: int, end: int
) -> None:
    data = bytes(n % 251 for n in range(1000))
    await http.post("/v1/filesystem/upload?path=f", content=data)
    down = await http.get("/v1/filesystem/download?path=f", headers={"Range": asked})
    assert down.status_code == status
    assert down.content == data[begin:end]
    if status == 206:
        assert down.headers["content-range"] == f"bytes {begin}-{end - 1}/1000"


async def test_conditions(http: httpx2.AsyncClient) -> None:
    up = await http.post("/v1/filesystem/upload?path=f", content=b"first")
    tag = f'"{up.json()["version"]}"'
    same = await http.get("/v1/filesystem/download?path=f", headers={"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")
    again = f"/v1/filesystem/upload?path=f&version={up.json()['version']}"
    assert (await http.post(again, content=b"second")).status_code == 200
    refused(await http.post(again, content=b"third"), 409, "file_changed")
    assert (await http.get("/v1/filesystem/download?path=f")).content == b"second"
    stale = await http.get("/v1/filesystem/download?path=f", headers={"If-Match": tag})
    refused(stale, 409, "file_changed")
    part = {"Range": "bytes=0-1", "If-Range": tag}
    assert (await http.get("/v1/filesystem/download?path=f", headers=part)).content == b"second"


async def test_a_form(http: httpx2.AsyncClient) -> None:
    data = os.urandom(500_000)
    up = await http.post(
        "/v1/filesystem/upload", data={"path": "in/"}, files={"file": ("../../x.bin", data)}
    )
    assert up.json()["path"] == "/workspace/in/x.bin"
    assert (await http.get("/v1/filesystem/download?path=in/x.bin")).content == data
    refused(
        await http.post("/v1/filesystem/upload", files={"file": ("..", b"x")}),
        400,
        "invalid_argument",
    )
    wrong = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (
        b"--x\r\ngarbage",
        b"",
        b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nhalf",
    ):
        answer = await http.post("/v1/filesystem/upload?path=bad", content=body, headers=wrong)
        refused(answer, 400, "invalid_argument")
    refused(await http.get("/v1/filesystem/download?path=bad"), 404, "file_not_found")
    # Of many small parts each costs the hub much more than the client; and nobody means them.
    flood = b'--x\r\nContent-Disposition: form-data; name="path"\r\na:b\r\na:b\r\n\r\n\r\n' * 5_000
    answer = await http.post("/v1/filesystem/upload", content=flood, headers=wrong)
    assert "too many parts" in refused(answer, 400, "invalid_argument")["detail"]


async def test_an_upload_that_breaks_off_leaves_what_was_there(
    http: httpx2.AsyncClient, served: Served
) -> None:
    await http.post("/v1/filesystem/upload?path=f", content=b"whole")
    head = "\r\n".join([
        "POST /v1/filesystem/upload?path=f HTTP/1.1",
        f"Host: 127.0.0.1:{served.port}",
        f"Authorization: {http.headers['authorization']}",
        "Content-Length: 1000000",
        "\r\n",
    ])  # fmt: skip
    async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(head.encode() + b"x" * 200_000)
    with anyio.fail_after(60):
        while True:
            done = await post(http, "/v1/shell/exec", command="cat f; ls -A")
            if done["stdout"] == "wholef\n":
                break


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/proc/self/root/etc/shadow", "/etc/shadow", "a\0b", "x" * 5000]
)
async def test_f1_paths_that_lead_out_are_refused(http: httpx2.AsyncClient, path: str) -> None:
    down = await http.get("/v1/filesystem/download", params={"path": path})
    assert down.status_code in (400, 403, 404)
    up = await http.post("/v1/filesystem/upload", params={"path": path}, content=b"x")
    assert up.status_code in (400, 403)
    assert up.headers["content-type"] == "application/problem+json"


async def test_f2_a_link_out_of_the_cave_leads_nowhere(http: httpx2.AsyncClient) -> None:
    canary = f"/var/tmp/ghost-canary-{secrets.token_hex(4)}"
    with open(canary, "w") as file:
        file.write("secret")
    try:
        await post(http, "/v1/shell/exec", command=f"ln -s {canary} out; ln -s / root")
        for path in ("out", f"root{canary}"):
            down = await http.get("/v1/filesystem/download", params={"path": path})
            assert b"secret" not in down.content
            await http.post("/v1/filesystem/upload", params={"path": path}, content=b"x")
        with open(canary) as file:
            assert file.read() == "secret"
    finally:
        os.unlink(canary)


async def test_a_file_that_changes_while_it_is_sent_breaks_off(http: httpx2.AsyncClient) -> None:
    await post(http, "/v1/shell/exec", command="head -c 60000000 /dev/zero > f")
    with pytest.raises(httpx2.RemoteProtocolError):
        async with http.stream("GET", "/v1/filesystem/download?path=f") as down:
            pieces = down.aiter_bytes()
            await anext(pieces)
            await post(http, "/v1/shell/exec", command="echo more >> f")
            async for _ in pieces:
                pass


# --- events and documents ------------------------------------------------------------------------


async def test_events_tell_of_calls_and_caves(http: httpx2.AsyncClient) -> None:
    await post(http, "/v1/shell/exec", command="true")
    seen: list[dict[str, Any]] = []
    with anyio.fail_after(60):
        async with http.stream("GET", "/v1/events") as stream, anyio.create_task_group() as tasks:
            async for line in stream.aiter_lines():
                if not line.startswith("data:"):
                    continue
                seen.append(json.loads(line.removeprefix("data:")))
                if len(seen) == 1:
                    tasks.start_soon(lambda: post(http, "/v1/shell/exec", command="echo hi"))
                if seen[-1].get("state") == "ended":
                    break
    assert seen[0] | {"at": 0} == {"type": "cave", "cave": "default", "state": "running", "at": 0}
    began, ended = [event for event in seen if event["type"] == "call"]
    assert (began["tool"], began["state"]) == ("shell_exec", "began")
    assert (ended["outcome"], ended["cave"]) == ("ok", "default")
    assert began["id"] == ended["id"]


async def test_the_document_lists_every_route(http: httpx2.AsyncClient) -> None:
    found = (await http.get("/openapi.json")).json()
    assert found["openapi"].startswith("3.1")
    for path in (
        *("/v1/sandbox", "/v1/sandbox/{id}", "/v1/shell/exec", "/v1/file/read", "/v1/file/write"),
        *("/v1/file/list", "/v1/filesystem/upload", "/v1/filesystem/download"),
        *("/v1/browser/screenshot", "/v1/browser/navigate", "/v1/caves/{id}/events"),
    ):
        assert path in found["paths"]
    text = (await http.get("/llms.txt")).text
    assert all(name in text for name in ("shell_exec", "/mcp/execute", "Authorization"))
    page = await http.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert (await http.get("/version")).json()["name"] == "ghost"


async def test_what_is_no_tool_leaves_its_line_too(
    http: httpx2.AsyncClient, served: Served
) -> None:
    said = "hunter2-in-plain-sight"
    assert (await http.post("/v1/caves", json={"name": "lined"})).status_code == 201
    where = "/v1/filesystem/upload?path=f&cave=lined"
    assert (await http.post(where, content=said.encode())).status_code == 201
    await http.get("/v1/filesystem/download?path=f&cave=lined")
    await http.get("/v1/filesystem/download?path=nowhere", headers={"Ghost-Cave": "lined"})
    await http.post("/v1/jupyter/execute", json={"code": said, "kernel": said, "cave": "lined"})
    await http.post("/v1/caves/lined/stop")
    await http.delete("/v1/caves/lined")
    trail = str(served.state / "audit")
    lines = [line for line in audit.read(trail) if str(line["cave"]).endswith("/lined")]
    assert [(line["tool"], line["outcome"] == "ok") for line in lines] == [
        ("POST /v1/caves", True),
        ("POST /v1/filesystem/upload", True),
        ("GET /v1/filesystem/download", True),
        ("GET /v1/filesystem/download", False),
        ("POST /v1/jupyter/execute", False),
        ("POST /v1/caves/{id}/stop", True),
        ("DELETE /v1/caves/{id}", True),
    ]
    assert len({line["owner"] for line in lines}) == 1
    assert said not in (served.state / "audit" / "calls.jsonl").read_text()
    async with served.client() as admin:
        assert 'tool="POST /v1/caves/{id}/stop"' in (await admin.get("/metrics")).text


async def test_operations_count_as_calls_and_what_ends_something_is_not_held_up() -> None:
    with serving(config="bounds:\n  calls_per_owner: 1\n") as hub:
        async with hub.client() as http, anyio.create_task_group() as tasks:
            await http.post("/v1/shell/exec", json={"command": "true"})
            tasks.start_soon(partial(http.post, "/v1/shell/exec", json={"command": "sleep 60"}))
            with anyio.fail_after(60):
                while "ghost_calls_running 1.0" not in (await http.get("/metrics")).text:
                    await anyio.sleep(0.01)
            refused(await http.post("/v1/caves/default/start"), 429, "quota_exceeded")
            assert (await http.post("/v1/caves/default/stop")).status_code == 200
            tasks.cancel_scope.cancel()

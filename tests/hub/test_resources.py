"""Resources: what can be read of caves, files and outputs, in bounded pieces, through a real client."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS, BlobResourceContents, TextResourceContents

from ghost_mcp import Cave, CaveSpec, Ghost
from ghost_servers.serving import resources
from tests.hub.test_calls import call, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.hub.conftest import Connect

PIECES = 100


@pytest.fixture
async def den(ghost: Ghost) -> AsyncIterator[Cave]:
    """A cave with a name to read from."""
    made = await ghost.create(CaveSpec(name="den", ephemeral=True))
    yield made
    await made.destroy()


async def read(client: Client, uri: str) -> tuple[str, dict[str, Any]]:
    """A text resource and its meta. That the rest is announced where there is one is checked here."""
    found = await client.read_resource(uri)
    first = found.contents[0]
    assert isinstance(first, TextResourceContents)
    meta = first.meta or {}
    assert (len(found.contents) == 2) is ("next_offset" in meta)
    return first.text, meta


async def whole(client: Client, uri: str) -> str:
    """Everything, by following the announced addresses."""
    pieces = []
    for _ in range(PIECES):
        found = await client.read_resource(uri)
        first = found.contents[0]
        assert isinstance(first, TextResourceContents)
        pieces.append(first.text)
        if len(found.contents) == 1:
            return "".join(pieces)
        uri = str(found.contents[1].uri)
    raise AssertionError(f"more than {PIECES} pieces")


async def refused(client: Client, uri: str) -> dict[str, Any]:
    with pytest.raises(MCPError) as caught:
        await client.read_resource(uri)
    told: dict[str, Any] = caught.value.data
    assert caught.value.message.startswith(told["message"])
    assert caught.value.code == INVALID_PARAMS
    return told


async def test_what_there_is(connect: Connect, den: Cave) -> None:
    async with connect() as client:
        listed = await client.list_resources()
        assert [str(one.uri) for one in listed.resources] == [
            "ghost://caves",
            "ghost://caves/den",
        ]
        templates = await client.list_resource_templates()
    assert [one.uri_template for one in templates.resource_templates] == [
        "ghost://caves/{name}",
        "ghost://caves/{name}/files/{+path}{?offset,limit}",
        "ghost://caves/{name}/outputs/{command}/{stream}{?offset,limit,search}",
    ]


async def test_a_long_list_comes_in_pages(
    connect: Connect, ghost: Ghost, den: Cave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "PAGE", 2)
    names = ["den", "den-2", "den-3"]
    async with (
        connect() as client,
        await ghost.create(CaveSpec(name="den-2")),
        await ghost.create(CaveSpec(name="den-3")),
    ):
        first = await client.list_resources()
        assert [one.name for one in first.resources] == ["caves", *names[:2]]
        second = await client.list_resources(cursor=first.next_cursor)
        assert [one.name for one in second.resources] == names[2:]
        assert second.next_cursor is None
        some, meta = await read(client, "ghost://caves?limit=2")
        assert [row["name"] for row in json.loads(some)["caves"]] == names[:2]
        assert (meta["next_offset"], meta["total"]) == (2, 3)


async def test_the_caves(connect: Connect, den: Cave) -> None:
    async with connect() as client:
        told, meta = await read(client, "ghost://caves")
    assert meta == {"offset": 0, "total": 1}
    [row] = json.loads(told)["caves"]
    assert (row["name"], row["id"], row["state"]) == ("den", den.id, "running")
    assert row["uri"] == "ghost://caves/den"


async def test_a_cave_s_status_and_what_is_enforced(connect: Connect, den: Cave) -> None:
    async with connect() as client:
        told = json.loads((await read(client, "ghost://caves/den"))[0])
        assert told["state"] == "running"
        assert told["assurance"]["network"]["enforced"] is True
        assert told["usage"]["pids"] >= 1
        await den.stop()
        assert json.loads((await read(client, "ghost://caves/den"))[0])["state"] == "stopped"
        assert (await refused_with(client, "ghost://caves/den/files/x"))["code"] == "conflict"


async def refused_with(client: Client, uri: str) -> dict[str, Any]:
    """The error of a read that was asked for rightly."""
    with pytest.raises(MCPError) as caught:
        await client.read_resource(uri)
    assert caught.value.code != INVALID_PARAMS
    told: dict[str, Any] = caught.value.data
    return told


async def test_a_text_file_by_range(connect: Connect, den: Cave) -> None:
    # Two-byte characters at odd offsets: no piece may cut one.
    content = "x" + "äöü€😀\n" * 9000
    await den.write("notes/long.txt", content, parents=True)
    async with connect() as client:
        uri = "ghost://caves/den/files/notes/long.txt"
        first, meta = await read(client, uri)
        assert len(first.encode()) <= resources.RANGE_BYTES
        assert meta["size_bytes"] == len(content.encode())
        assert await whole(client, uri) == content
        assert await whole(client, f"{uri}?limit=3001") == content
        part, meta = await read(client, f"{uri}?offset=0&limit=5")
        assert (part, meta["next_offset"]) == ("xäö", 5)
        beyond, meta = await read(client, f"{uri}?offset=999999999")
        assert (beyond, "next_offset" in meta) == ("", False)
        await den.write("notes/short.txt", "€ä😀x")
        assert await whole(client, "ghost://caves/den/files/notes/short.txt?limit=1") == "€ä😀x"


async def test_a_range_is_bounded_whatever_is_asked(connect: Connect, den: Cave) -> None:
    await den.write("big", "y" * 1_000_000)
    async with connect() as client:
        got, meta = await read(client, "ghost://caves/den/files/big?limit=999999999")
    assert len(got) == resources.MAX_RANGE_BYTES == meta["next_offset"]


async def test_a_binary_file_is_a_blob(connect: Connect, den: Cave) -> None:
    data = bytes(range(256)) * 1000
    await den.write("dot.png", data)
    async with connect() as client:
        found = await client.read_resource("ghost://caves/den/files/dot.png")
        [blob] = found.contents
        assert isinstance(blob, BlobResourceContents)
        assert (blob.mime_type, base64.b64decode(blob.blob)) == ("image/png", data)
        ranged = await client.read_resource("ghost://caves/den/files/dot.png?offset=10&limit=100")
        part, onward = ranged.contents
        assert isinstance(part, BlobResourceContents)
        assert base64.b64decode(part.blob) == data[10:110]
        assert str(onward.uri).endswith("?offset=110&limit=100")


async def test_a_folder_lists_its_entries(connect: Connect, den: Cave) -> None:
    odd = b"a%b \xff?.txt"
    await den.write("sub/inner", "", parents=True)
    await den.exec(["python3", "-c", f"open({odd!r}, 'w').write('odd')"])
    async with connect() as client:
        told = json.loads((await read(client, "ghost://caves/den/files/"))[0])
        assert told["path"] == "/workspace"
        assert [(row["name"], row["type"]) for row in told["entries"]] == [
            ("a%b \ufffd?.txt", "file"),
            ("sub", "directory"),
        ]
        content, _ = await read(client, told["entries"][0]["uri"])
        assert content == "odd"
        inner = json.loads((await read(client, told["entries"][1]["uri"]))[0])
        assert [row["uri"] for row in inner["entries"]] == ["ghost://caves/den/files/sub/inner"]


async def test_a_large_folder_comes_in_pieces(connect: Connect, den: Cave) -> None:
    await den.exec("mkdir many; cd many; seq -f 'f%04g' 450 | xargs touch")
    uri = "ghost://caves/den/files/many"
    names: list[str] = []
    async with connect() as client:
        for _ in range(5):
            told, meta = await read(client, uri)
            names += [row["name"] for row in json.loads(told)["entries"]]
            if "next_offset" not in meta:
                break
            uri = f"ghost://caves/den/files/many?offset={meta['next_offset']}"
        # All that stands before a page is listed for it, and read here: of a million entries that is seconds.
        with pytest.raises(MCPError, match="can be paged through"):
            await read(client, "ghost://caves/den/files/many?offset=999999")
    assert names == [f"f{number:04}" for number in range(1, 451)]


async def test_an_absolute_path_has_a_second_slash(connect: Connect, den: Cave) -> None:
    async with connect() as client:
        content, _ = await read(client, "ghost://caves/den/files//etc/hosts")
    assert "localhost" in content


async def test_an_output_by_range_and_by_search(connect: Connect, den: Cave) -> None:
    async with connect(pinned="den") as client:
        done = await call(client, "flood", command="seq 1 100000")
        uri = text(done).split()[-1]
        assert uri == "ghost://caves/den/outputs/c1/stdout"
        lines = "".join(f"{number}\n" for number in range(1, 100_001))
        assert await whole(client, f"{uri}?limit=150000") == lines
        part, meta = await read(client, f"{uri}?offset=10&limit=6")
        assert (part, meta["size_bytes"], meta["running"]) == (lines[10:16], len(lines), False)
        assert (await read(client, f"{uri}?search=%5E9999.%24"))[0].splitlines() == [
            f"{number}:{number}" for number in range(99990, 100_000)
        ]
        found, meta = await read(client, f"{uri}?search=7&limit=3")
        assert found.splitlines()[:3] == ["7:7", "17:17", "27:27"]
        assert meta["truncated"] is True
        assert "there are more" in found
        assert (await read(client, f"{uri}?search=nothing"))[0] == "no line matches"
        assert (await read(client, uri.replace("stdout", "stderr")))[0] == ""


async def test_what_was_not_kept_is_said(connect: Connect, den: Cave) -> None:
    async with connect(pinned="den") as client:
        await call(client, "flood", command="yes 0123456 | head -c 20000000; echo end")
        uri = "ghost://caves/den/outputs/c1/stdout"
        _, meta = await read(client, f"{uri}?offset=8388600")
        [start, end] = meta["not_kept"]
        assert start == meta["next_offset"] == 8 << 20
        _, meta = await read(client, f"{uri}?offset={start}")
        assert meta["offset"] == end  # what follows begins behind the gap
        tail, meta = await read(client, f"{uri}?offset=20000000")
        assert (tail, "next_offset" in meta) == ("end\n", False)


async def test_binary_output_is_a_blob(connect: Connect, den: Cave) -> None:
    async with connect(pinned="den") as client:
        await call(client, "flood", command="head -c 3000 /bin/sh")
        found = await client.read_resource("ghost://caves/den/outputs/c1/stdout")
    [blob] = found.contents
    assert isinstance(blob, BlobResourceContents)
    assert base64.b64decode(blob.blob).startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("ghost://nothing", "resource_not_found"),
        ("file:///etc/passwd", "resource_not_found"),
        ("ghost://caves/den/secrets/x", "resource_not_found"),
        ("ghost://caves/den#files", "resource_not_found"),
        ("ghost://caves/none", "cave_not_found"),
        ("ghost://caves/none/files/x", "cave_not_found"),
        ("ghost://caves/..%2Fden", "invalid_argument"),
        ("ghost://caves/den/files/none", "file_not_found"),
        ("ghost://caves/den/files/a%00b", "invalid_path"),
        ("ghost://caves/den/outputs/c9/stdout", "command_not_found"),
        ("ghost://caves/den/outputs/c9/stdin", "invalid_argument"),
        ("ghost://caves/den/outputs/../stdout", "invalid_argument"),
        ("ghost://caves/den/files/x?range=5", "invalid_argument"),
        ("ghost://caves/den/files/x?offset=-1", "invalid_argument"),
        ("ghost://caves/den/files/x?limit=1e9", "invalid_argument"),
        ("ghost://caves/den/files/x?limit=0", "invalid_argument"),
        ("ghost://caves/den/outputs/c1/stdout?search=x&offset=1", "invalid_argument"),
    ],
)
async def test_a_wrong_address_is_refused(connect: Connect, den: Cave, uri: str, code: str) -> None:
    async with connect() as client:
        assert (await refused(client, uri))["code"] == code


@pytest.mark.parametrize("path", ["../../etc/shadow", "/proc/1/environ", "/run/ghost/warden"])
async def test_a_path_out_of_the_cave_is_refused(connect: Connect, den: Cave, path: str) -> None:
    async with connect() as client:
        told = await refused(client, f"ghost://caves/den/files/{path}")
    assert told["code"] == "path_outside"


async def test_a_bad_pattern_is_refused(connect: Connect, den: Cave) -> None:
    async with connect(pinned="den") as client:
        await call(client, "flood", command="echo x")
        told = await refused(client, "ghost://caves/den/outputs/c1/stdout?search=%28")
    assert told["code"] == "bad_pattern"

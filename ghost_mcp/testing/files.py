"""The part of the contract that says what a cave does with files and trees."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ghost_mcp.errors import Conflict, InvalidArgument, NotFound, PermissionRefused
from ghost_mcp.testing.basis import PATIENCE_S, Basis

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave

__all__ = ["Files"]


async def _lay_out(cave: Cave) -> None:
    for path, text in {
        "README.md": "# Title\nhello world\n",
        "src/one.py": "import os\nprint('hello')\n",
        "src/two.py": "print('goodbye')\n",
        "src/.hidden": "hello from the dark\n",
    }.items():
        await cave.write(path, text, parents=True)


class Files(Basis):
    """read, write, and the operations on trees."""

    @pytest.mark.parametrize("size", [0, 5, 196_608, 196_609, 5_000_000])
    async def test_what_is_written_is_read(self, size: int) -> None:
        data = os.urandom(size)
        async with self.cave() as cave:
            answer = await cave.write("file.bin", data)
            assert (answer["created"], answer["written"], answer["size"]) == (True, size, size)
            content = await cave.read("file.bin")
            assert content.data == data
            assert (content.size, content.version) == (size, answer["version"])
            part = await cave.read("file.bin", offset=2, count=3)
            assert (part.data, part.size) == (data[2:5], size)

    async def test_ways_to_write(self) -> None:
        async with self.cave() as cave:
            await cave.write("log", "one\n", mode="create")
            with pytest.raises(Conflict) as caught:
                await cave.write("log", "two\n", mode="create")
            assert caught.value.code == "file_exists"
            await cave.write("log", "two\n", mode="append")
            assert (await cave.read("log")).data == b"one\ntwo\n"
            await cave.write("log", "three\n", permissions=0o600)
            content = await cave.read("log")
            assert (content.data, content.mode) == (b"three\n", 0o600)
            with pytest.raises(NotFound):
                await cave.write("no/such/folder/file", "x")
            await cave.write("no/such/folder/file", "x", parents=True)

    async def test_a_version_prevents_a_lost_update(self) -> None:
        async with self.cave() as cave:
            first = await cave.write("note", "first", version="")
            await cave.write("note", "second", version=first["version"])
            for stale in (first["version"], ""):
                with pytest.raises(Conflict) as caught:
                    await cave.write("note", "third", version=stale)
                assert caught.value.code == "file_changed"
            assert (await cave.read("note")).data == b"second"

    async def test_a_write_is_seen_whole_or_not_at_all(self) -> None:
        contents = [letter * 400_000 for letter in (b"a", b"b")]
        async with self.cave() as cave:
            await cave.write("file", contents[0])

            async def rewrite() -> None:
                for number in range(20):
                    await cave.write("file", contents[number % 2])
                tasks.cancel_scope.cancel()

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(rewrite)
                    while True:
                        assert (await cave.read("file")).data in contents
            listed = await cave.exec(["ls", "-A"])
            assert listed.stdout == "file\n"

    async def test_a_missing_file_is_not_found_and_the_hint_names_its_neighbours(self) -> None:
        async with self.cave() as cave:
            await cave.write("report.txt", "x")
            with pytest.raises(NotFound) as caught:
                await cave.read("reprot.txt")
            assert caught.value.code == "file_not_found"
            assert "report.txt" in caught.value.hint

    @pytest.mark.parametrize("path", ["../other", "a/../../b", "/proc/1/mem", "/sys/kernel"])
    async def test_a_path_outside_is_refused(self, path: str) -> None:
        async with self.cave() as cave:
            with pytest.raises(PermissionRefused):
                await cave.read(path)
            with pytest.raises(PermissionRefused):
                await cave.write(path, "x")

    @pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000])
    async def test_what_is_no_path_is_refused(self, path: str) -> None:
        async with self.cave() as cave:
            with pytest.raises(InvalidArgument):
                await cave.read(path)

    async def test_a_tree_is_listed(self) -> None:
        async with self.cave() as cave:
            await _lay_out(cave)
            entries, answer = await cave.records("list", {"path": ".", "depth": 2})
            assert [entry["path"] for entry in entries] == [
                "README.md",
                "src",
                "src/one.py",
                "src/two.py",
            ]
            assert (answer["total"], answer["truncated"]) == (4, False)
            hidden, _ = await cave.records("list", {"path": "src", "hidden": True})
            assert ".hidden" in [entry["path"] for entry in hidden]
            globbed, _ = await cave.records("list", {"path": ".", "glob": "**/*.py"})
            assert [entry["path"] for entry in globbed] == ["src/one.py", "src/two.py"]

    async def test_a_tree_is_searched(self) -> None:
        async with self.cave() as cave:
            await _lay_out(cave)
            head = {"path": ".", "pattern": "hell[o]", "include": ["*.py", "*.md"]}
            found, answer = await cave.records("search", head)
            assert {(hit["path"], hit["line"]) for hit in found} == {
                ("README.md", 2),
                ("src/one.py", 2),
            }
            assert answer["matches"] == 2
            fixed, _ = await cave.records(
                "search", {"path": ".", "pattern": "print(", "fixed": True}
            )
            assert len(fixed) == 2

    async def test_snapshots_tell_what_changed(self) -> None:
        async with self.cave() as cave:
            await _lay_out(cave)
            before = await self._snapshot(cave)
            await cave.write("src/new.py", "x")
            await cave.write("src/one.py", "changed")
            await cave.call("remove", {"path": "README.md"})
            after = await self._snapshot(cave)
            assert {path for path in before | after if before.get(path) != after.get(path)} >= {
                "README.md",
                "src/new.py",
                "src/one.py",
            }
            assert before["src/two.py"] == after["src/two.py"]

    async def _snapshot(self, cave: Cave) -> dict[str, Any]:
        _, data = await cave.collect("snapshot", {"path": "."})
        records = [record.split(b" ", 4) for record in data.split(b"\0") if record]
        return {record[4].decode(): record[:4] for record in records}

    async def test_folders_moves_and_removals(self) -> None:
        async with self.cave() as cave:
            await _lay_out(cave)
            await cave.call("mkdir", {"path": "a/b"})
            await cave.call("move", {"path": "src", "to": "a/b/src"})
            answer, _ = await cave.call("stat", {"path": "a/b/src/one.py"})
            assert answer["type"] == "file"
            with pytest.raises(Conflict):
                await cave.call("remove", {"path": "a"})
            await cave.call("remove", {"path": "a", "recursive": True})
            with pytest.raises(NotFound):
                await cave.call("stat", {"path": "a"})

    async def test_a_tree_goes_out_and_in_as_an_archive(self) -> None:
        async with self.cave() as cave:
            await _lay_out(cave)
            _, packed = await cave.collect("pack", {"path": ".", "format": "tar"})
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                names = {member.name.removeprefix("./") for member in archive.getmembers()}
            assert {"README.md", "src/one.py", "src/.hidden"} <= names
            link = await cave.ghost.link(cave.id)
            await cave.call("mkdir", {"path": "copy"})
            async with link.stream("unpack", {"path": "copy", "format": "tar"}) as stream:
                await stream.send(packed)
                await stream.send_eof()
                await stream.answer()
            assert (await cave.read("copy/src/one.py")).data == (await cave.read("src/one.py")).data

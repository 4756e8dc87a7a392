"""The part of the contract that says when a cave is there, and in which state."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import pytest

from ghost_mcp.errors import CaveNotFound, Conflict, InvalidArgument, Unsupported
from ghost_mcp.spec import CaveSpec
from ghost_mcp.testing.basis import PATIENCE_S, Basis, connected, until
from ghost_mcp.warden.link import Link

if TYPE_CHECKING:
    from ghost_mcp.backends.base import Backend

__all__ = ["Creation", "States"]


class Creation(Basis):
    """create, get, list."""

    async def test_create_answers_with_what_was_asked_for(self) -> None:
        asked = self.spec(
            env={"COLOUR": "blue"},
            labels={"team": "red"},
            limits={"memory_bytes": 256 << 20, "pids": 100},
            timeout_s=600.0,
            idle_timeout_s=500.0,
        )
        async with self.backend() as backend:
            before = time.time()
            info = await backend.create(asked)
            assert info.state == "running"
            assert info.spec == asked.with_(backend=backend.name)
            assert before - 1 <= info.created_at <= time.time() + 1
            assert info.deadline_at == pytest.approx(time.time() + 600, abs=PATIENCE_S)
            assert (await backend.get(info.id)).spec == info.spec
            shown = json.loads(json.dumps(info.as_dict()))
            assert CaveSpec.from_dict(shown["spec"]) == info.spec

    async def test_what_create_returns_is_ready(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            async with anyio.create_task_group() as tasks, connected(backend, info.id) as stream:
                link = await Link.open(stream, tasks, name=info.name)
                answer, _ = await link.call("stats")
                assert answer["ok"] is True
                await link.aclose()

    async def test_create_again_with_the_same_id_is_the_same_cave(self) -> None:
        spec = self.spec()
        async with self.backend() as backend:
            first = await backend.create(spec)
            boot = await self.boot(spec.id)
            again = await backend.create(spec)
            assert (again.id, again.created_at) == (first.id, first.created_at)
            assert await self.boot(spec.id) == boot
            assert [info.id for info in await self.ours(backend)] == [spec.id]

    async def test_of_creates_at_once_with_the_same_id_one_cave_comes(self) -> None:
        spec, made = self.spec(env={"COLOUR": "blue"}), []
        async with self.backend() as backend, self.backend() as other:

            async def create(by: Backend) -> None:
                made.append(await by.create(spec))
                async with self.view(
                    spec.id
                ) as cave:  # ready for each, not only for the one who made it
                    assert (await cave.exec('echo "$COLOUR"')).stdout == "blue\n"

            async with anyio.create_task_group() as tasks:
                for by in (backend, other, backend, other):
                    tasks.start_soon(create, by)
            assert {(info.id, info.state.value) for info in made} == {(spec.id, "running")}
            assert [info.id for info in await self.ours(backend)] == [spec.id]

    async def test_an_id_under_another_name_is_a_conflict(self) -> None:
        spec = self.spec()
        async with self.backend() as backend:
            await backend.create(spec)
            with pytest.raises(Conflict):
                await backend.create(spec.with_(name=f"{spec.name}-2"))
            assert [info.name for info in await self.ours(backend)] == [spec.name]

    async def test_a_taken_name_is_a_conflict_and_leaves_nothing(self) -> None:
        first = self.spec()
        second = self.spec(name=first.name)
        async with self.backend() as backend:
            await backend.create(first)
            boot = await self.boot(first.id)
            with pytest.raises(Conflict) as caught:
                await backend.create(second)
            assert first.name in str(caught.value)
            with pytest.raises(CaveNotFound):
                await backend.get(second.id)
            await self.nothing_left(second.id)
            assert [info.id for info in await self.ours(backend)] == [first.id]
            assert await self.boot(first.id) == boot

    async def test_of_creates_at_once_with_the_same_name_one_succeeds(self) -> None:
        first = self.spec()
        specs = [self.spec(name=first.name) for _ in range(4)]
        made: list[str] = []
        async with self.backend() as backend:

            async def create(spec: CaveSpec) -> None:
                with suppress(Conflict):
                    made.append((await backend.create(spec)).id)

            async with anyio.create_task_group() as tasks:
                for spec in specs:
                    tasks.start_soon(create, spec)
            assert len(made) == 1
            assert (await backend.get(first.full_name)).id == made[0]
            assert [info.id for info in await self.ours(backend)] == made
            for spec in specs:
                if spec.id not in made:
                    await self.nothing_left(spec.id)

    async def test_what_cannot_be_enforced_is_refused_and_leaves_nothing(self) -> None:
        async with self.backend() as backend:
            for settings in self.refused:
                spec = self.spec(**settings)
                with pytest.raises((InvalidArgument, Unsupported)) as caught:
                    await backend.create(spec)
                assert caught.value.message
                await self.nothing_left(spec.id)
            assert await self.ours(backend) == []

    @pytest.mark.parametrize("after_s", [0.0, 0.005, 0.02, 0.1, 0.4])
    async def test_a_cancelled_create_leaves_nothing(self, after_s: float) -> None:
        spec = self.spec()
        async with self.backend() as backend:
            with anyio.move_on_after(after_s) as scope:
                await backend.create(spec)
            there = [info.id for info in await self.ours(backend)]
            assert there == ([] if scope.cancelled_caught else [spec.id])
            if scope.cancelled_caught:
                await self.nothing_left(spec.id)

    async def test_a_cave_is_found_by_name_and_by_id(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            assert (await backend.get(info.full_name)).id == info.id
            assert (await backend.get(info.id)).name == info.name

    async def test_owners_have_names_of_their_own(self) -> None:
        mine = self.spec()
        theirs = mine.with_(id=secrets.token_hex(8), owner=f"{mine.owner}-2")
        async with self.backend() as backend:
            try:
                for spec in (mine, theirs):
                    await backend.create(spec)
                for spec in (mine, theirs):
                    assert (await backend.get(spec.full_name)).spec.owner == spec.owner
                with pytest.raises(CaveNotFound):
                    await backend.get(mine.name)
                await backend.destroy(mine.id)
                assert await self.state_of(backend, theirs.full_name) == "running"
            finally:
                await backend.destroy(theirs.id)

    async def test_an_unknown_cave_is_not_found_and_the_hint_names_those_there_are(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec(name=f"a-{secrets.token_hex(4)}"))
            for name in ("no-such-cave", "..", "", "x" * 500, "\0"):
                with pytest.raises(CaveNotFound) as caught:
                    await backend.get(name)
                assert info.name in caught.value.hint
            for name in ("0" * 16, "a/b"):  # which others ask by: they learn of none but their own
                with pytest.raises(CaveNotFound) as caught:
                    await backend.get(name)
                assert info.name not in caught.value.hint

    async def test_every_verb_but_destroy_knows_an_unknown_cave(self) -> None:
        unknown = "0123456789abcdef"
        async with self.backend() as backend:
            for verb in (backend.start, backend.stop, backend.connect, backend.usage):
                with pytest.raises(CaveNotFound):
                    await verb(unknown)
            with pytest.raises(CaveNotFound):
                async for _ in backend.logs(unknown):
                    pass

    async def test_list_has_all_caves_oldest_first(self) -> None:
        async with self.backend() as backend:
            made = [(await backend.create(self.spec())).id for _ in range(3)]
            await backend.stop(made[1])
            there = await self.ours(backend)
            assert [info.id for info in there] == made
            assert [info.state for info in there] == ["running", "stopped", "running"]
            everybodys = await backend.list()
            assert [info.id for info in everybodys if info.id in made] == made
            assert await backend.list("nobody-of-that-name") == []

    async def test_another_backend_object_sees_and_uses_the_cave(self) -> None:
        async with self.backend() as backend, self.backend() as other:
            info = await backend.create(self.spec())
            assert [seen.id for seen in await self.ours(other)] == [info.id]
            async with self.view(info.full_name) as cave:
                assert (await cave.exec(["echo", "found"])).stdout == "found\n"
            await other.stop(info.id)
            assert await self.state_of(backend, info.id) == "stopped"
            await other.destroy(info.id)
            assert await self.state_of(backend, info.id) == "gone"

    async def test_calls_at_once_do_not_disturb_each_other(self) -> None:
        async with self.backend() as backend, self.backend() as other:

            async def live(by: Backend) -> None:
                info = await by.create(self.spec())
                await by.usage(info.id)
                await by.stop(info.id)
                await by.start(info.id)
                assert (await by.get(info.id)).state == "running"
                await by.destroy(info.id)

            async with anyio.create_task_group() as tasks:
                for by in (backend, other, backend):
                    tasks.start_soon(live, by)
                for _ in range(10):
                    await self.ours(backend)
            assert await self.ours(other) == []


class States(Basis):
    """stop, start, pause, connect, usage, logs."""

    async def test_stop_ends_programs_and_keeps_files_and_start_brings_them_back(self) -> None:
        nap = self.nap()
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            async with self.view(info.id) as cave:
                await cave.write("kept.txt", "here")
                await cave.write("~/mine.txt", "also")
                await cave.exec(f"setsid sleep {nap} >/dev/null 2>&1 &")
                await until(lambda: self.runs(cave, nap))  # its shell may not have got there yet
            boot = await self.boot(info.id)
            assert (await backend.stop(info.id)).state == "stopped"
            assert await self.state_of(backend, info.full_name) == "stopped"
            assert (await backend.start(info.id)).state == "running"
            assert await self.boot(info.id) != boot
            async with self.view(info.id) as cave:
                assert (await cave.read("kept.txt")).data == b"here"
                assert (await cave.read("~/mine.txt")).data == b"also"
                assert not await self.runs(cave, nap)

    async def test_stop_twice_and_start_twice_change_nothing(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            boot = await self.boot(info.id)
            assert (await backend.start(info.id)).state == "running"
            assert await self.boot(info.id) == boot
            for _ in range(2):
                assert (await backend.stop(info.id)).state == "stopped"

    async def test_the_deadline_counts_from_the_start(self) -> None:
        async with self.backend() as backend:
            first = await backend.create(self.spec(timeout_s=100.0))
            await backend.stop(first.id)
            before = time.time()
            again = await backend.start(first.id)
            assert first.deadline_at is not None
            assert again.deadline_at is not None
            assert again.deadline_at > first.deadline_at
            assert before + 100 - 1 <= again.deadline_at <= time.time() + 100 + 1
            async with self.view(first.id) as cave:
                answer, _ = await cave.call("stats")
                assert 100 - PATIENCE_S < answer["left_s"] <= 100

    async def test_a_stopped_cave_takes_no_connection(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            await backend.stop(info.id)
            with pytest.raises(Conflict) as caught:
                await backend.connect(info.id)
            assert "start" in caught.value.hint.lower()

    async def test_pause_freezes_and_start_thaws_the_same_processes(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            boot = await self.boot(info.id)
            if not self.can_pause:
                with pytest.raises(Unsupported):
                    await backend.stop(info.id, pause=True)
                assert await self.boot(info.id) == boot
                return
            for _ in range(2):
                assert (await backend.stop(info.id, pause=True)).state == "paused"
            assert await self.state_of(backend, info.id) == "paused"
            with pytest.raises(Conflict):
                await backend.connect(info.id)
            assert (await backend.start(info.id)).state == "running"
            assert await self.boot(info.id) == boot

    async def test_a_paused_cave_can_be_stopped_and_destroyed(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            if not self.can_pause:
                with pytest.raises(Unsupported):
                    await backend.stop(info.id, pause=True)
                return
            await backend.stop(info.id, pause=True)
            assert (await backend.stop(info.id)).state == "stopped"
            await backend.start(info.id)
            await backend.stop(info.id, pause=True)
            await backend.destroy(info.id)
            assert await self.state_of(backend, info.id) == "gone"
            await self.nothing_left(info.id)

    async def test_each_connection_is_one_of_its_own(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            async with anyio.create_task_group() as tasks:
                streams = [await backend.connect(info.id) for _ in range(3)]
                links = [await Link.open(stream, tasks, name=info.name) for stream in streams]
                await links[0].aclose()
                for link in links[1:]:
                    assert (await link.call("stats"))[0]["ok"] is True
                    await link.aclose()

    async def test_usage_tells_what_it_can(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            usage = await backend.usage(info.id)
            for name in self.measures:
                assert getattr(usage, name) > 0, name

    async def test_logs_are_read_from_their_beginning(self) -> None:
        async with self.cave() as cave:
            await cave.exec(["echo", "first"])
            await cave.exec(["echo", "second"])
            said = b"".join([piece async for piece in cave.logs()])
            assert 0 <= said.find(b"echo first") < said.find(b"echo second")

    async def test_logs_are_followed_until_the_cave_ends(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            said = bytearray()
            heard = anyio.Event()

            async def follow() -> None:
                async for piece in backend.logs(info.id, follow=True):
                    said.extend(piece)
                    if b"echo later" in said:
                        heard.set()

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(follow)
                    async with self.view(info.id) as cave:
                        await cave.exec(["echo", "later"])
                    await heard.wait()
                    await backend.stop(info.id)

    async def test_following_logs_can_be_given_up(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            with anyio.fail_after(PATIENCE_S), anyio.move_on_after(0.5):
                async for _ in backend.logs(info.id, follow=True):
                    pass
            assert await self.state_of(backend, info.id) == "running"

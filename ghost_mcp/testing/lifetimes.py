"""The part of the contract that says when a cave is there, in which state, and when it is gone."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import pytest

from ghost_mcp.errors import (
    CaveGone,
    CaveNotFound,
    Conflict,
    GhostError,
    InvalidArgument,
    Unsupported,
)
from ghost_mcp.spec import CaveInfo, CaveSpec, Limits
from ghost_mcp.testing.basis import PATIENCE_S, Basis, until
from ghost_mcp.warden.link import Link

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from ghost_mcp.backends.base import Backend

__all__ = ["Creation", "Endings", "Pools", "States"]

MANY = 20

# Makes the caves described on standard input, says so, and stays until it is killed.
_MAKER = """
{source}
import asyncio, json, sys
from ghost_mcp.spec import CaveSpec

async def main():
    async with make() as backend:
        for described in json.loads(sys.stdin.readline()):
            await backend.create(CaveSpec.from_dict(described))
        print("made", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def _ended(stream: ByteStream) -> None:
    """Wait until a cave's stream ends."""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            await stream.receive()


@asynccontextmanager
async def _stream(backend: Backend, cave_id: str) -> AsyncIterator[ByteStream]:
    stream = await backend.connect(cave_id)
    try:
        yield stream
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()


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
            async with anyio.create_task_group() as tasks, _stream(backend, info.id) as stream:
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
            assert await self.leftovers(second.id) == []
            assert [info.id for info in await self.ours(backend)] == [first.id]
            assert await self.boot(first.id) == boot

    async def test_of_creates_at_once_with_the_same_name_one_succeeds(self) -> None:
        name = self.spec().name
        specs = [self.spec(name=name) for _ in range(4)]
        made: list[str] = []
        async with self.backend() as backend:

            async def create(spec: CaveSpec) -> None:
                with suppress(Conflict):
                    made.append((await backend.create(spec)).id)

            async with anyio.create_task_group() as tasks:
                for spec in specs:
                    tasks.start_soon(create, spec)
            assert len(made) == 1
            assert (await backend.get(name)).id == made[0]
            assert [info.id for info in await self.ours(backend)] == made
            for spec in specs:
                assert spec.id in made or await self.leftovers(spec.id) == []

    async def test_what_cannot_be_enforced_is_refused_and_leaves_nothing(self) -> None:
        async with self.backend() as backend:
            for settings in self.refused:
                spec = self.spec(**settings)
                with pytest.raises((InvalidArgument, Unsupported)) as caught:
                    await backend.create(spec)
                assert caught.value.message
                assert await self.leftovers(spec.id) == []
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
                assert await self.leftovers(spec.id) == []

    async def test_a_cave_is_found_by_name_and_by_id(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            assert (await backend.get(info.name)).id == info.id
            assert (await backend.get(info.id)).name == info.name

    async def test_an_unknown_cave_is_not_found_and_the_hint_names_those_there_are(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec(name=f"a-{secrets.token_hex(4)}"))
            for name in ("no-such-cave", "0" * 16, "..", "", "a/b", "x" * 500, "\0"):
                with pytest.raises(CaveNotFound) as caught:
                    await backend.get(name)
                assert info.name in caught.value.hint

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

    async def test_another_backend_object_sees_and_uses_the_cave(self) -> None:
        async with self.backend() as backend, self.backend() as other:
            info = await backend.create(self.spec())
            assert [seen.id for seen in await self.ours(other)] == [info.id]
            async with self.view(info.name) as cave:
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
                assert await self.runs(cave, nap)
            boot = await self.boot(info.id)
            assert (await backend.stop(info.id)).state == "stopped"
            assert await self.state_of(backend, info.name) == "stopped"
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
            assert await self.leftovers(info.id) == []

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


class Endings(Basis):
    """destroy, deadlines, and caves that die."""

    async def test_destroy_of_an_unknown_cave_is_fine(self) -> None:
        async with self.backend() as backend:
            await backend.destroy("0123456789abcdef")
            await backend.destroy("never-was")

    async def test_destroy_leaves_nothing_and_frees_the_name(self) -> None:
        spec = self.spec()
        async with self.backend() as backend:
            await backend.create(spec)
            await backend.destroy(spec.id)
            await backend.destroy(spec.id)
            assert await self.state_of(backend, spec.name) == "gone"
            assert await self.leftovers(spec.id) == []
            again = await backend.create(self.spec(name=spec.name))
            assert again.state == "running"

    @pytest.mark.parametrize("state", ["running", "stopped", "ended"])
    async def test_many_destroys_at_once(self, state: str) -> None:
        async with self.backend() as backend, self.backend() as other:
            info = await backend.create(self.spec())
            if state == "stopped":
                await backend.stop(info.id)
            elif state == "ended":
                await self.crash(info)
            with anyio.fail_after(2 * PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    for number in range(MANY):
                        tasks.start_soon((backend, other)[number % 2].destroy, info.id)
            assert await self.state_of(backend, info.id) == "gone"
            assert await self.leftovers(info.id) == []

    async def test_a_cave_ends_by_itself_at_its_deadline(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec(timeout_s=2.0))
            async with self.view(info.id) as cave:
                await cave.write("kept.txt", "here")
            with anyio.fail_after(PATIENCE_S):
                async with _stream(backend, info.id) as stream:
                    await _ended(stream)
            assert time.time() >= info.created_at + 2.0 - 0.5
            await until(lambda: self._has_ended(backend, info.id))
            with pytest.raises(CaveGone):
                await backend.connect(info.id)
            assert [seen.state for seen in await self.ours(backend)] == ["ended"]
            assert (await backend.start(info.id)).state == "running"
            async with self.view(info.id) as cave:
                assert (await cave.read("kept.txt")).data == b"here"

    async def _has_ended(self, backend: Backend, cave_id: str) -> bool:
        return await self.state_of(backend, cave_id) == "ended"

    async def test_a_cave_ends_by_itself_when_nothing_is_asked_of_it(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec(idle_timeout_s=1.0))
            # Asking the backend about a cave is nothing asked of the cave.
            await until(lambda: self._has_ended(backend, info.id))

    async def test_a_call_that_runs_is_not_idle(self) -> None:
        async with self.cave(idle_timeout_s=0.5) as cave:
            done = await cave.exec(["sleep", "1.5"])
            assert done.exit_code == 0

    async def test_an_ephemeral_cave_that_has_ended_is_swept(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec(timeout_s=1.0, ephemeral=True))
            with anyio.fail_after(PATIENCE_S):
                async with _stream(backend, info.id) as stream:
                    await _ended(stream)

            async def swept() -> bool:
                return await self.ours(backend) == [] and await self.leftovers(info.id) == []

            await until(swept)
            assert await self.state_of(backend, info.id) == "gone"

    async def test_leaving_the_backend_ends_what_is_ephemeral_and_only_that(self) -> None:
        async with self.backend() as other:
            async with self.make() as backend:
                passing = await backend.create(self.spec(ephemeral=True))
                lasting = await backend.create(self.spec())
            assert await self.state_of(other, passing.id) == "gone"
            assert await self.leftovers(passing.id) == []
            async with self.view(lasting.id) as cave:
                assert (await cave.exec(["true"])).exit_code == 0

    async def test_when_the_maker_is_killed_what_is_ephemeral_ends_and_only_that(self) -> None:
        if not self.persistent:
            pytest.skip("not run: these caves are known to one process only and end with it")
        passing, lasting = self.spec(ephemeral=True), self.spec()
        async with self.backend() as backend:
            program = _MAKER.format(source=self.elsewhere())
            async with await anyio.open_process([sys.executable, "-c", program]) as maker:
                assert maker.stdin is not None
                assert maker.stdout is not None
                described = json.dumps([passing.as_dict(), lasting.as_dict()])
                await maker.stdin.send(described.encode() + b"\n")
                with anyio.fail_after(PATIENCE_S):
                    said = b""
                    while b"made" not in said:
                        said += await maker.stdout.receive()
                async with _stream(backend, passing.id) as stream:
                    maker.kill()
                    with anyio.fail_after(PATIENCE_S):
                        await _ended(stream)
            async with self.view(lasting.id) as cave:
                assert (await cave.exec(["true"])).exit_code == 0

            async def swept() -> bool:
                return [info.id for info in await self.ours(backend)] == [lasting.id]

            await until(swept)
            assert await self.leftovers(passing.id) == []

    @pytest.mark.parametrize("how", ["crash", "destroy", "stop"])
    async def test_a_cave_that_ends_under_a_call_fails_it_at_once(self, how: str) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            async with self.view(info.id) as cave:
                failures: list[GhostError] = []

                async def call() -> None:
                    try:
                        await cave.exec(["sleep", self.nap()])
                    except GhostError as exc:
                        failures.append(exc)

                with anyio.fail_after(PATIENCE_S):
                    async with anyio.create_task_group() as tasks, cave.process("cat") as running:
                        await running.send(b"x")
                        assert await running.receive() == (1, b"x")
                        for _ in range(3):
                            tasks.start_soon(call)
                        if how == "crash":
                            await self.crash(info)
                        else:
                            await getattr(backend, how)(info.id)
                        with pytest.raises(CaveGone):
                            await running.wait()
                    with pytest.raises((CaveGone, CaveNotFound, Conflict)):
                        await cave.exec(["true"])
                assert {type(failure) for failure in failures} <= {CaveGone, CaveNotFound, Conflict}
                assert len(failures) == 3

    async def test_a_cave_that_died_is_known_as_ended_and_can_be_started(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            async with self.view(info.id) as cave:
                await cave.write("kept.txt", "here")
            await self.crash(info)
            await until(lambda: self._has_ended(backend, info.id))
            assert (await backend.start(info.id)).state == "running"
            async with self.view(info.id) as cave:
                assert (await cave.read("kept.txt")).data == b"here"


class Pools(Basis):
    """prepare and claim, where the backend has a warm pool."""

    async def test_a_prepared_cave_is_claimed_once(self) -> None:
        async with self.backend() as backend:
            if not backend.pools:
                with pytest.raises(Unsupported):
                    await backend.prepare(Limits())
                with pytest.raises(Unsupported):
                    await backend.claim("0123456789abcdef", self.spec())
                return
            prepared = await backend.prepare(Limits())
            specs = [self.spec(labels={"n": str(n)}) for n in range(4)]
            claimed: list[CaveInfo] = []

            async def claim(spec: CaveSpec) -> None:
                with suppress(CaveNotFound):
                    claimed.append(await backend.claim(prepared, spec))

            async with anyio.create_task_group() as tasks:
                for spec in specs:
                    tasks.start_soon(claim, spec)
            assert len(claimed) == 1
            assert claimed[0].spec in [spec.with_(backend=backend.name) for spec in specs]
            assert [info.id for info in await self.ours(backend)] == [claimed[0].id]
            async with self.view(claimed[0].id) as cave:
                assert (await cave.exec(["true"])).exit_code == 0

    async def test_a_prepared_cave_is_no_cave_yet_and_ends_with_its_maker(self) -> None:
        async with self.backend() as backend:
            if not backend.pools:
                with pytest.raises(Unsupported):
                    await backend.prepare(Limits())
                return
            before = {info.id for info in await backend.list()}
            async with self.make() as maker:
                prepared = await maker.prepare(Limits())
                assert {info.id for info in await backend.list()} <= before
                stream = await maker.connect(prepared)
            with anyio.fail_after(PATIENCE_S):
                await _ended(stream)
            await stream.aclose()
            assert await self.leftovers(prepared) == []

    async def test_a_claim_under_a_taken_name_is_a_conflict(self) -> None:
        async with self.backend() as backend:
            if not backend.pools:
                with pytest.raises(Unsupported):
                    await backend.claim("0123456789abcdef", self.spec())
                return
            taken = await backend.create(self.spec())
            prepared = await backend.prepare(Limits())
            with pytest.raises(Conflict):
                await backend.claim(prepared, self.spec(name=taken.name))
            assert [info.id for info in await self.ours(backend)] == [taken.id]
            await backend.destroy(prepared)

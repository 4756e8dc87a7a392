"""The part of the contract that says how a cave ends: destroyed, at its deadline, with its maker, by accident."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import pytest

from ghost_mcp.errors import CaveGone, CaveNotFound, Conflict, GhostError, Unsupported
from ghost_mcp.ghost import Ghost
from ghost_mcp.pool import PoolPlan
from ghost_mcp.testing.basis import PATIENCE_S, Basis, connected, ended, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ghost_mcp.backends.base import Backend
    from ghost_mcp.cave import Cave
    from ghost_mcp.spec import CaveInfo, CaveSpec

__all__ = ["Endings", "Pools"]

MANY = 20
Done = TypeVar("Done")

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
            assert await self.state_of(backend, spec.full_name) == "gone"
            await self.nothing_left(spec.id)
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
            await self.nothing_left(info.id)

    async def test_a_cave_ends_by_itself_at_its_deadline(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec(timeout_s=2.0 * self.slowness))
            await self._in_time(backend, info, lambda cave: cave.write("kept.txt", "here"))
            await self._until_its_end(backend, info)
            assert time.time() >= info.created_at + 2.0 * self.slowness - 0.5
            await until(lambda: self._has_ended(backend, info.id))
            with pytest.raises(CaveGone):
                await backend.connect(info.id)
            assert [seen.state for seen in await self.ours(backend)] == ["ended"]
            assert (await backend.start(info.id)).state == "running"
            kept = await self._in_time(backend, info, lambda cave: cave.read("kept.txt"))
            assert kept.data == b"here"

    async def _in_time(
        self, backend: Backend, info: CaveInfo, act: Callable[[Cave], Awaitable[Done]]
    ) -> Done:
        """What is done in a cave that ends by itself; where the machine was too slow for it, it is started again."""
        with anyio.fail_after(PATIENCE_S):
            while True:
                try:
                    async with self.view(info.id) as cave:
                        return await act(cave)
                except (CaveGone, Conflict):
                    await until(lambda: self._has_ended(backend, info.id))
                    await backend.start(info.id)

    async def _until_its_end(self, backend: Backend, info: CaveInfo) -> None:
        """Hear it end, unless that has been."""
        with anyio.fail_after(PATIENCE_S), suppress(CaveGone, CaveNotFound):
            async with connected(backend, info.id) as stream:
                await ended(stream)

    async def _has_ended(self, backend: Backend, cave_id: str) -> bool:
        return await self.state_of(backend, cave_id) == "ended"

    async def test_a_cave_ends_by_itself_when_nothing_is_asked_of_it(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec(idle_timeout_s=self.slowness))
            # Asking the backend about a cave is nothing asked of the cave.
            await until(lambda: self._has_ended(backend, info.id))

    async def test_a_call_that_runs_is_not_idle(self) -> None:
        async with self.cave(idle_timeout_s=2.0) as cave:
            assert (await cave.exec(["sleep", "3"])).exit_code == 0

    async def test_an_ephemeral_cave_that_has_ended_is_swept(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec(timeout_s=self.slowness, ephemeral=True))
            await self._until_its_end(backend, info)

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
            await self.nothing_left(passing.id)
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
                async with connected(backend, passing.id) as stream:
                    maker.kill()
                    with anyio.fail_after(PATIENCE_S):
                        await ended(stream)
            async with self.view(lasting.id) as cave:
                assert (await cave.exec(["true"])).exit_code == 0

            async def swept() -> bool:
                listed = [info.id for info in await self.ours(backend)]
                return listed == [lasting.id] and await self.leftovers(passing.id) == []

            await until(swept)

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
        async with self.backend() as backend, self.backend() as other:
            if await self._no_pool(backend):
                return
            prepared = await backend.prepare(self.passing())
            specs = [self.passing(labels={"n": str(n)}) for n in range(4)]
            claimed: list[CaveInfo] = []

            async def claim(by: Backend, spec: CaveSpec) -> None:
                with suppress(CaveNotFound):
                    claimed.append(await by.claim(prepared, spec))

            async with anyio.create_task_group() as tasks:
                for number, spec in enumerate(specs):
                    tasks.start_soon(claim, (backend, other)[number % 2], spec)
            assert len(claimed) == 1
            assert claimed[0].spec in [spec.with_(backend=backend.name) for spec in specs]
            assert [info.id for info in await self.ours(backend)] == [claimed[0].id]
            assert (await other.get(claimed[0].full_name)).spec == claimed[0].spec
            async with self.view(claimed[0].id) as cave:
                assert (await cave.exec(["true"])).exit_code == 0
            await other.destroy(claimed[0].id)
            await self.nothing_left(claimed[0].id)
            await self.nothing_left(prepared)

    async def test_a_prepared_cave_is_no_cave_yet_and_ends_with_its_maker(self) -> None:
        async with self.backend() as backend:
            if await self._no_pool(backend):
                return
            before = {info.id for info in await backend.list()}
            async with self.make() as maker:
                prepared = await maker.prepare(self.passing())
                assert {info.id for info in await backend.list()} <= before
                stream = await maker.connect(prepared)
            with anyio.fail_after(PATIENCE_S):
                await ended(stream)
            await stream.aclose()

            await self.nothing_left(prepared)

    async def test_a_claim_under_a_taken_name_is_a_conflict(self) -> None:
        async with self.backend() as backend:
            if await self._no_pool(backend):
                return
            taken = await backend.create(self.spec())
            prepared = await backend.prepare(self.passing())
            with pytest.raises(Conflict):
                await backend.claim(prepared, self.passing(name=taken.name))
            assert [info.id for info in await self.ours(backend)] == [taken.id]
            await backend.destroy(prepared)
            await self.nothing_left(prepared)

    async def test_a_pool_of_a_shape_serves_what_has_that_shape(self) -> None:
        if not self.make().pools:
            return
        plan = PoolPlan(template=self.passing(limits={"memory_bytes": 256 << 20}), size=2)
        async with Ghost(backend=self.make(), pools=[plan]) as ghost:
            await ghost.warm()
            (pool,) = ghost._pools[ghost.default_backend]
            assert pool.ready == 2
            full = pool.filled
            asked = self.passing(limits={"memory_bytes": 256 << 20}, env={"COLOUR": "blue"})
            cave = await ghost.create(asked)
            assert pool.filled is not full  # one was taken; another may be there already
            assert (await cave.exec('echo "$COLOUR"')).stdout == "blue\n"
            await ghost.create(self.passing())  # of another shape: made, not claimed
            assert len(await ghost.list()) >= 2
            await ghost.warm()
            assert pool.ready == 2

    async def test_a_pool_that_nobody_asks_shrinks_until_somebody_does(self) -> None:
        if not self.make().pools:
            return
        plan = PoolPlan(template=self.passing(), size=2, idle_s=0.5)
        async with Ghost(backend=self.make(), pools=[plan]) as ghost:
            await ghost.warm()

            async def is_empty() -> bool:
                return ghost.pooled[ghost.default_backend] == 0

            # Not all at once, where making one takes longer than its patience.
            async def has_some() -> bool:
                return ghost.pooled[ghost.default_backend] > 0

            await until(is_empty)
            await ghost.create(self.passing())
            await until(has_some)

    def passing(self, **changes: Any) -> CaveSpec:
        return self.spec(ephemeral=True, **changes)

    async def _no_pool(self, backend: Backend) -> bool:
        """Whether there is none; then it is refused."""
        if not backend.pools:
            with pytest.raises(Unsupported):
                await backend.prepare(self.passing())
            with pytest.raises(Unsupported):
                await backend.claim("0123456789abcdef", self.passing())
        return not backend.pools

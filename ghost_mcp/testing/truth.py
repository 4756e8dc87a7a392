"""The part of the contract that holds a cave to what it says of itself: secrets, limits, assurance."""

from __future__ import annotations

import json
import secrets as random_values

import anyio
import pytest

from ghost_mcp.errors import LimitExceeded, Unsupported
from ghost_mcp.testing.basis import Basis

__all__ = ["Truth"]

BOUNDARIES = frozenset(
    {
        *("isolation", "user", "syscalls", "network", "lifetime"),
        *("memory", "cpu", "pids", "disk", "tmp"),
    }
)
MIB = 1 << 20

_DIAL = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)
    print("reached")
except OSError:
    print("not reached")
"""
_SAME = """
import os
print(open("expected", "rb").read() == os.environb[b"API_KEY"])
"""
_FORK = """
import os, time
born = 0
try:
    while born < 200:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        born += 1
except OSError:
    pass
print(born)
"""


class Truth(Basis):
    """No secret is shown, and what is called enforced is enforced."""

    async def test_secrets_reach_programs_and_are_shown_nowhere(self) -> None:
        secret = random_values.token_hex(12).encode() + b"\xff\xfe"
        shown = secret[:24].decode()
        async with self.backend() as backend:
            info = await backend.create(self.spec(secrets=["API_KEY"]), secrets={"API_KEY": secret})
            for again in range(2):
                async with self.view(info.id) as cave:
                    await cave.write("expected", secret)
                    assert await self.script(cave, _SAME) == "True"
                    done = await cave.exec(
                        'printf %s "$API_KEY"; sleep 0; printf %s "$API_KEY" >&2'
                    )
                    assert done.stdout_bytes.startswith(b"[secret API_KEY]")
                    assert (len(done.stdout_bytes), done.stderr) == (len(secret), done.stdout)
                    usage = await cave.usage()
                    log = b"".join([piece async for piece in cave.logs()])
                listed = [seen.as_dict() for seen in await backend.list()]
                everywhere = [
                    json.dumps(info.as_dict()),
                    json.dumps(listed),
                    f"{info!r} {usage!r} {log!r}",
                    await self.engine_shows(info),
                ]
                assert info.id in everywhere[1]
                for place in everywhere:
                    assert shown not in place
                if not again:  # a restart gets them anew, from whoever asks for it
                    await backend.stop(info.id)
                    info = await backend.start(info.id, secrets={"API_KEY": secret})

    async def test_every_boundary_is_accounted_for(self) -> None:
        async with self.cave() as cave:
            assert set(cave.info.assurance) >= BOUNDARIES
            for name, line in cave.info.assurance.items():
                assert line.how.strip(), name
            assert (await cave.refresh()).assurance == cave.info.assurance

    async def test_network_when_called_enforced_does_not_reach_the_host(self) -> None:
        async with (
            self.cave() as cave,
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        ):
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            reached = await self.script(cave, _DIAL, str(port)) == "reached"
            assert not (reached and cave.info.assurance["network"].enforced)

    async def test_memory_when_called_enforced_is_bounded(self) -> None:
        async with self.cave(limits={"memory_bytes": 96 * MIB}) as cave:
            taken = await cave.exec(
                [*self.python, "import sys; x = b'x' * int(sys.argv[1])", str(300 * MIB)]
            )
            assert not (taken.exit_code == 0 and cave.info.assurance["memory"].enforced)
            assert (await cave.exec(["true"])).exit_code == 0

    async def test_processes_when_called_enforced_are_bounded(self) -> None:
        async with self.cave(limits={"pids": 40}) as cave:
            born = int(await self.script(cave, _FORK))
            assert born < 40 or not cave.info.assurance["pids"].enforced

    async def test_tmp_when_called_enforced_is_bounded(self) -> None:
        async with self.cave(limits={"tmp_bytes": 4 * MIB}) as cave:
            assert (await cave.exec('echo x >"$TMPDIR/x"')).exit_code == 0
            filled = await cave.exec('head -c 16777216 /dev/zero >"$TMPDIR/full"')
            assert not (filled.exit_code == 0 and cave.info.assurance["tmp"].enforced)

    async def test_a_disk_limit_is_enforced_or_refused(self) -> None:
        try:
            async with self.cave(limits={"disk_bytes": 32 * MIB}) as cave:
                assert cave.info.assurance["disk"].enforced
                with pytest.raises(LimitExceeded) as caught:
                    await cave.write("full", bytes(64 * MIB))
                assert caught.value.code == "no_space"
        except Unsupported as refusal:
            assert refusal.message

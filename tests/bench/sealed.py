"""What secrets cost: sealing a thousand, and masking fifty in five megabytes of output."""

from __future__ import annotations

import base64
import os
import shutil

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from mcp import Client

from ghost_hub.catalog import toolset
from ghost_mcp import Cave, CaveSpec
from ghost_mcp.secrets.keys import FileKeys
from ghost_mcp.secrets.store import SecretStore
from tests.bench.measure import Row, Side, taken, turns
from tests.bench.place import Place
from tests.bench.serving import client
from tests.bench.tools import FLOOD, OUTPUT_BYTES

__all__ = ["masking", "sealing"]

SECRETS = 1000
MASKED = 50


def _value() -> bytes:
    """As keys of services are: forty characters."""
    return base64.urlsafe_b64encode(os.urandom(30))


async def sealing(place: Place) -> list[Row]:
    """A thousand secrets set in one step, on the disk; and all of them sealed again under a new key."""
    folder = place.folder / "secrets"
    store = SecretStore(folder, FileKeys(folder / "key"))
    values = {f"S{number}": _value() for number in range(SECRETS)}
    cipher = AESGCM(os.urandom(32))

    async def bare() -> float:
        async def act() -> None:
            for name, value in values.items():
                cipher.encrypt(os.urandom(12), value, name.encode())

        return await taken(act)

    async def set_all() -> float:
        async def act() -> None:
            store.set("", values)

        return await taken(act)

    async def rotate() -> float:
        async def act() -> None:
            assert store.rotate() == SECRETS

        return await taken(act)

    setting, rotating, floor = await turns(place.rounds(40), set_all, rotate, bare)
    shutil.rmtree(folder)
    what = f"{SECRETS} AES-GCM calls, nonces included"
    return [
        Row(
            what=f"{SECRETS} secrets set, on the disk",
            unit="ms",
            samples=setting,
            floor=floor,
            floor_what=what,
            goal_ratio=20,
        ),
        Row(
            what=f"{SECRETS} secrets under a new key",
            unit="ms",
            samples=rotating,
            floor=floor,
            floor_what=what,
        ),
    ]


async def masking(place: Place) -> list[Row]:
    """5 MB of output of a cave that has secrets, against one that has none."""
    spec = CaveSpec(ephemeral=True)
    for number in range(MASKED):
        spec = spec.with_secret(f"S{number}", _value())
    async with (
        place.ghost() as ghost,
        await ghost.create(ephemeral=True) as plain,
        await ghost.create(spec) as secretive,
        client(ghost, toolset("shell"), cave=plain) as one,
        client(ghost, toolset("shell"), cave=secretive) as other,
    ):

        def through_tool(connection: Client) -> Side:
            async def act() -> None:
                done = await connection.call_tool("shell_exec", {"command": FLOOD})
                assert done.structured_content["stdout_size"] == OUTPUT_BYTES

            return lambda: taken(act)

        def through_library(cave: Cave) -> Side:
            async def act() -> None:
                assert len((await cave.exec(FLOOD)).stdout_bytes) == OUTPUT_BYTES

            return lambda: taken(act)

        rounds = place.rounds(40)
        tool, tool_floor = await turns(rounds, through_tool(other), through_tool(one))
        whole, whole_floor = await turns(rounds, through_library(secretive), through_library(plain))
    return [
        Row(
            what=f"5 MB of stdout through shell_exec, {MASKED} secrets",
            unit="ms",
            samples=tool,
            floor=tool_floor,
            floor_what="the same without secrets",
            goal_ratio=1.1,
        ),
        Row(
            what=f"5 MB of stdout taken whole by Cave.exec, {MASKED} secrets",
            unit="ms",
            samples=whole,
            floor=whole_floor,
            floor_what="the same without secrets",
            notes=("every byte is looked at; a tool's answer is an excerpt",),
        ),
    ]

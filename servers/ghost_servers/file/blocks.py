# Large files are read in blocks. Only this file fetches bytes for a reader, and never more than it asked for.
"""One way to read a file of the cave and a kept output: by range, with what is known of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ghost_mcp.outputs import Output, is_output, read_output

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Bytes from ``offset``, which lies behind the offset asked for where an output has a gap. ``version`` is
    empty for an output; ``running``: there may be more later."""

    path: str
    data: bytes
    offset: int
    size: int
    version: str = ""
    running: bool = False

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class Blocks(Protocol):
    async def at(self, offset: int, count: int) -> Block:
        """At most ``count`` bytes; none behind the end."""
        ...


class FileBlocks:
    """A file by its path in the cave."""

    def __init__(self, cave: Cave, path: str) -> None:
        self._cave, self._path = cave, path

    async def at(self, offset: int, count: int) -> Block:
        found = await self._cave.read(self._path, offset=offset, count=count)
        return Block(
            path=found.path,
            data=found.data[:count],
            offset=offset,
            size=found.size,
            version=found.version,
        )


class OutputBlocks:
    """A command's output by its URI."""

    def __init__(self, cave: Cave, uri: str) -> None:
        self._cave, self._output = cave, Output.parse(uri).of(cave)

    async def at(self, offset: int, count: int) -> Block:
        found = await read_output(self._cave, self._output, offset=offset, count=count)
        return Block(
            path=self._output.uri,
            data=found.data,
            offset=found.offset,
            size=found.size,
            running=found.running,
        )


def blocks(cave: Cave, path: str) -> Blocks:
    """What to read ``path`` through. Raises InvalidArgument for a URI that is no output of this cave."""
    return OutputBlocks(cave, path) if is_output(path) else FileBlocks(cave, path)

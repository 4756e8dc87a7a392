# The handle a caller holds. Everything it does is a stream on the cave's link.
"""Cave: run programs, read and write files, dial ports, in one cave."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio

from ghost_mcp.errors import (
    CaveGone,
    Conflict,
    GhostError,
    NotFound,
    ProtocolFailure,
)
from ghost_mcp.process import ExecResult, Process, asked, captured, captured_feeding
from ghost_mcp.warden.linkstream import Piped

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from ghost_mcp.backends.base import Backend
    from ghost_mcp.egress.ledger import Grant, Ledger
    from ghost_mcp.ghost import Ghost
    from ghost_mcp.secrets.masker import Masker
    from ghost_mcp.services import Service, ServiceStatus
    from ghost_mcp.spec import CaveInfo, Usage
    from ghost_mcp.warden.link import Link
    from ghost_mcp.warden.linkstream import LinkStream

__all__ = ["Cave", "FileContent", "Writing"]

MAX_CAPTURE = 64 << 20
# A warden that answers nothing for so long is frozen, or fights for its life.
ANSWER_S = 150.0
ONE_FRAME = 3 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FileContent:
    """What was read: the bytes, the whole file's size, and the version to give back when writing."""

    path: str
    data: bytes
    size: int
    mode: int
    mtime: float
    version: str


class Cave:
    """One cave. Made by Ghost; usable until it is destroyed. ``async with`` destroys it at the end."""

    def __init__(self, ghost: Ghost, backend: Backend, info: CaveInfo) -> None:
        self._ghost = ghost
        self._backend = backend
        self.info = info

    @property
    def ghost(self) -> Ghost:
        """The Ghost this handle came from."""
        return self._ghost

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def name(self) -> str:
        return self.info.name

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.destroy()

    # --- programs --------------------------------------------------------------------------------

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float | None = None,
        limit_bytes: int = MAX_CAPTURE,
    ) -> ExecResult:
        """Run a program to its end and capture its output. A shell line is run by bash, or sh.

        A non-zero exit code is a result, not an error. ``timeout_s`` ends the whole process tree and sets
        ``timed_out``. Raises LimitExceeded beyond ``limit_bytes`` of output; the program is then ended.
        """
        given = stdin.encode() if isinstance(stdin, str) else stdin
        body = given if given is not None and len(given) <= ONE_FRAME else b""
        how = "none" if given is None else ("data" if len(given) <= ONE_FRAME else "open")
        head = asked(command, env, cwd) | {"stdin": how, "timeout_s": timeout_s}
        async with self._explained(), await self._stream("exec", head, body) as stream:
            if how == "open" and given is not None:
                return await captured_feeding(stream, given, limit_bytes)
            return await captured(stream, limit_bytes)

    @asynccontextmanager
    async def process(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float | None = None,
        pty: tuple[int, int] | None = None,
        devtools: bool = False,
    ) -> AsyncIterator[Process]:
        """Start a program with open input; leaving the block ends it and all it started.

        ``pty`` is a terminal's (rows, columns). ``devtools`` gives it a DevTools pipe: what is sent arrives
        on descriptor 3, what it writes to descriptor 4 is received as channel 4.
        """
        head = asked(command, env, cwd) | {
            "stdin": "open",
            "timeout_s": timeout_s,
            "pipes": devtools,
        }
        if pty is not None:
            head["pty"] = list(pty)
        async with await self._stream("exec", head) as stream:
            yield Process(stream)

    async def call(
        self, op: str, head: Mapping[str, Any] | None = None, body: bytes = b""
    ) -> tuple[dict[str, Any], bytes]:
        """One operation of the warden: ``(head, body)``. The operations are listed in warden/program.py.

        Raises TimedOut when nothing comes for ANSWER_S beyond the time the operation was told to wait.
        """
        async with self._explained():
            link = await self._link()
            return await link.call(op, head, body, timeout_s=_patience(op, head or {}))

    async def records(
        self, op: str, head: Mapping[str, Any], *, limit_bytes: int = MAX_CAPTURE
    ) -> tuple[list[Any], dict[str, Any]]:
        """An operation that answers JSON lines: ``(records, closing head)``. Raises ProtocolFailure."""
        answer, data = await self.collect(op, head, limit_bytes=limit_bytes)
        try:
            records = [json.loads(line) for line in data.splitlines() if line]
        except (ValueError, RecursionError) as exc:
            raise ProtocolFailure(f"the warden answered {op} with what is not JSON") from exc
        if not all(isinstance(record, dict) for record in records):
            raise ProtocolFailure(f"the warden answered {op} with what are not records")
        return records, answer

    async def collect(
        self,
        op: str,
        head: Mapping[str, Any] | None = None,
        body: bytes = b"",
        *,
        limit_bytes: int = MAX_CAPTURE,
    ) -> tuple[dict[str, Any], bytes]:
        """An operation that answers in pieces: ``(closing head, all bytes)``. Raises too_large."""
        link = await self._link()
        return await link.collect(op, head, body, limit_bytes=limit_bytes)

    # --- files -----------------------------------------------------------------------------------

    async def read(self, path: str, *, offset: int = 0, count: int | None = None) -> FileContent:
        """Read a file, or ``count`` bytes from ``offset``. At most 64 MiB at once; larger raises too_large."""
        link = await self._link()
        head: dict[str, Any] = {"path": path, "offset": offset}
        if count is not None:
            head["count"] = count
        return _content(*await link.collect("read", head, limit_bytes=MAX_CAPTURE))

    async def write(
        self,
        path: str,
        data: bytes | str,
        *,
        mode: Literal["create", "overwrite", "append"] = "overwrite",
        parents: bool = False,
        permissions: int | None = None,
        version: str | None = None,
    ) -> dict[str, Any]:
        """Write a file atomically: its old content or the new one, never a part.

        With ``version`` (from read) the write raises Conflict ``file_changed`` when the file is another one
        by now; the empty string means: must not exist. Answers ``{path, created, written, size, version}``.
        """
        raw = data.encode() if isinstance(data, str) else data
        head = {
            "path": path,
            "mode": mode,
            "parents": parents,
            "permissions": permissions,
            "version": version,
        }
        if len(raw) <= ONE_FRAME:
            answer, _ = await self.call("write", head, raw)
            return answer
        async with await self._stream("write", {**head, "more": True}) as stream:
            try:
                await stream.send(raw)
                await stream.send_eof()
            except CaveGone:
                pass  # the answer says why the warden stopped taking it
            answer, _ = await stream.answer()
            return answer

    @asynccontextmanager
    async def reading(
        self, path: str, *, offset: int = 0, count: int | None = None
    ) -> AsyncIterator[tuple[FileContent, AsyncIterator[bytes]]]:
        """A file of any size: what it is, without its data, and the pieces as they come.

        A file that changes meanwhile ends the pieces with Conflict ``file_changed``.
        """
        head: dict[str, Any] = {"path": path, "offset": offset, "steady": True}
        if count is not None:
            head["count"] = count
        async with self._explained(), await self._stream("read", head) as stream:
            about, _ = await stream.note()

            async def pieces() -> AsyncIterator[bytes]:
                while (piece := await stream.receive()) is not None:
                    yield piece[1]
                await stream.answer()

            yield _content(about, b""), pieces()

    @asynccontextmanager
    async def writing(
        self,
        path: str,
        *,
        mode: Literal["create", "overwrite", "append"] = "overwrite",
        parents: bool = False,
        version: str | None = None,
    ) -> AsyncIterator[Writing]:
        """Write a file of any size in pieces, atomically: a block that fails leaves the old file, or none.

        Raises as write() does.
        """
        head = {"path": path, "mode": mode, "parents": parents, "version": version, "more": True}
        async with self._explained(), await self._stream("write", head) as stream:
            writing = Writing(stream)
            yield writing
            await writing._finish()

    # --- ports -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def dial(
        self, port: int | None = None, *, path: str | None = None, service: str | None = None
    ) -> AsyncIterator[ByteStream]:
        """Connect to a TCP port on the cave's loopback, or of a side service of it, or to a unix socket in it."""
        head: dict[str, Any] = {"path": path} if path is not None else {"port": port}
        if service is not None:
            head["host"] = await self.address(service)
        async with await self._stream("dial", head) as stream:
            try:
                await stream.note()
            except NotFound as exc:
                if exc.code != "connection_refused":
                    raise
                where = f"at {path}" if path is not None else f"on port {port}"
                hint = "Start its program first. It may still be starting."
                raise NotFound(f"nothing listens {where}", hint=hint, code=exc.code) from exc
            yield Piped(stream)

    async def address(self, service: str) -> str:
        """The IP address at which the cave reaches a side service. Raises NotFound, Unsupported where there are none."""
        return await self._backend.address(self.id, service)

    # --- services --------------------------------------------------------------------------------

    def service(self, name: str) -> Service:
        """A program that runs for whoever dials it: vnc, code-server, ...; see configs/services.yaml.

        Raises NotFound, with the names that there are.
        """
        from ghost_mcp.services import Service  # most callers want none

        return Service(self, name)

    async def services(self) -> list[ServiceStatus]:
        """All services that are declared: what they do here, or what this cave lacks for them."""
        from ghost_mcp.services import running

        return await running(self)

    @asynccontextmanager
    async def held(self, op: str, head: Mapping[str, Any]) -> AsyncIterator[None]:
        """An operation that says that it has begun, and goes on for as long as the block."""
        async with await self._stream(op, head) as stream:
            await stream.note()
            yield

    # --- network ---------------------------------------------------------------------------------

    def allow(self, rule: str, *, for_s: float | None = None) -> Grant:
        """Let the cave reach one more name or address, from its next connection on; see ``egress.policy``.

        Without ``for_s`` for as long as the cave is there. Raises InvalidArgument, and Conflict for a cave
        that was made without a network.
        """
        if self.info.spec.network.mode == "none":
            raise Conflict(
                f"cave {self.name} has no network",
                hint="It is decided when a cave is made: ghost create NAME --allow RULE",
            )
        return self._ledger().grant(rule, for_s=for_s)

    def connections(self, *, since: float = 0.0) -> list[dict[str, Any]]:
        """Each step of each connection to the outside, allowed or refused, oldest first; see ``egress.ledger``."""
        return self._ledger().records(since=since)

    def watch_connections(self) -> AsyncIterator[dict[str, Any]]:
        """The same, and each new one as it comes."""
        return self._ledger().follow()

    def _ledger(self) -> Ledger:
        from ghost_mcp.egress.ledger import Ledger  # most caves have no network

        return Ledger(self._backend.ledger(self.id))

    # --- the cave itself -------------------------------------------------------------------------

    async def refresh(self) -> CaveInfo:
        """Ask the backend what is there now."""
        self.info = await self._backend.get(self.id)
        return self.info

    async def start(self) -> CaveInfo:
        self.info = await self._ghost.start(self.id)
        return self.info

    async def stop(self, *, pause: bool = False) -> CaveInfo:
        await self._ghost.drop_link(self.id)
        self.info = await self._backend.stop(self.id, pause=pause)
        return self.info

    async def destroy(self) -> None:
        await self._ghost.destroy(self.id)

    async def usage(self) -> Usage:
        return await self._backend.usage(self.id)

    def logs(self, *, service: str | None = None, follow: bool = False) -> AsyncIterator[bytes]:
        """The log of the warden, or of a side service, in pieces; with ``follow`` until it ends."""
        if service is None:
            pieces = self._backend.logs(self.id, follow=follow)
        else:
            pieces = self._backend.service_logs(self.id, service, follow=follow)
        return self._masked(pieces) if self.info.spec.secrets else pieces

    async def masker(self) -> Masker | None:
        """What masks its secrets in what comes another way than its link's answers; None when it has none."""
        return await self._ghost.masker(self.info)

    async def _masked(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        masker = await self.masker()
        if masker is None:
            raise CaveGone(f"cave {self.name} is another one by now")
        feed = masker.feed()
        try:
            async for piece in pieces:
                if shown := feed.feed(piece):
                    yield shown
            yield feed.flush()
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        """A cave that ended under a call: say so if its memory did it."""
        try:
            yield
        except CaveGone as exc:
            killed: int | None = None
            with suppress(GhostError):
                killed = (await self.usage()).oom_kills
            if not killed:
                raise
            raise CaveGone(
                f"cave {self.name} ran out of memory and ended",
                hint="Give it more memory, or work on less at once.",
                code="out_of_memory",
            ) from exc

    async def _link(self) -> Link:
        return await self._ghost.link(self.id)

    async def _stream(
        self, op: str, head: Mapping[str, Any], body: bytes = b""
    ) -> AbstractAsyncContextManager[LinkStream]:
        link = await self._link()
        return link.stream(op, head, body)


class Writing:
    """A file that is being written; see Cave.writing(). ``written`` says what came of it, after the block."""

    def __init__(self, stream: LinkStream) -> None:
        self._stream = stream
        self.written: dict[str, Any] = {}

    async def send(self, data: bytes) -> None:
        """The next piece. Raises what made the cave stop taking it."""
        try:
            await self._stream.send(data)
        except CaveGone:
            await self._stream.answer()
            raise

    async def _finish(self) -> None:
        await self._stream.send_eof()
        self.written, _ = await self._stream.answer()


def _content(about: Mapping[str, Any], data: bytes) -> FileContent:
    return FileContent(
        path=about["path"],
        data=data,
        size=int(about["size"]),
        mode=int(about["mode"]),
        mtime=float(about["mtime"]),
        version=str(about["version"]),
    )


def _patience(op: str, head: Mapping[str, Any]) -> float | None:
    """How long an answer may take: what runs a program may take as long as the program."""
    wait_s = head.get("wait_s")
    if op in ("exec", "command") and wait_s is None:
        return None
    return ANSWER_S + float(wait_s or 0)

# Runs in a cave, on the cave's own jupyter_client. Imports nothing of Ghost's: it may be the only file of it there.
"""Jupyter kernels by session, for whoever connects to a unix socket: one JSON line asks, one answers; then the next.

Whoever asks hangs up to give a request up: what it was running is interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager

if TYPE_CHECKING:
    from jupyter_client.asynchronous.client import AsyncKernelClient

MAX_REQUEST = 16 << 20
MAX_SESSIONS = 16
MAX_OUTPUT = 8 << 20
START_S = 60.0
GIVE_IN_S = 5.0
ALIVE_S = 0.5
STARVED = "the code asked for more input than was given, and was interrupted"
PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


class Refused(Exception):
    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.head = {"ok": False, "code": code, "message": message, "hint": hint}


class Outputs:
    """What an execution shows, in order and bounded."""

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []
        self.truncated = False
        self._size = 0
        self._clear = False
        self._by_id: dict[str, dict[str, Any]] = {}

    def take(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "clear_output":
            if content.get("wait"):
                self._clear = True
            else:
                self.shown.clear()
        elif kind == "update_display_data":
            shown = self._by_id.get(content.get("transient", {}).get("display_id", ""))
            if shown is not None and self._fits(content["data"]):
                shown["data"] = content["data"]
        elif kind in ("stream", "display_data", "execute_result", "error"):
            self._add(kind, content)

    def _add(self, kind: str, content: dict[str, Any]) -> None:
        if self._clear:
            self.shown.clear()
            self._clear = False
        last = self.shown[-1] if self.shown else {}
        if kind == "stream":
            name, text = content["name"], content["text"]
            text = text[: max(0, MAX_OUTPUT - self._size)] if not self._fits(text) else text
            if last.get("type") == "stream" and last.get("name") == name:
                last["pieces"].append(text)
            else:
                self.shown.append({"type": "stream", "name": name, "pieces": [text]})
        elif kind == "error":
            self.shown.append(failure(content["ename"], content["evalue"], content["traceback"]))
        elif self._fits(content["data"]):
            word = "result" if kind == "execute_result" else "display"
            one = {"type": word, "data": content["data"]}
            self.shown.append(one)
            if name := content.get("transient", {}).get("display_id"):
                self._by_id[name] = one

    def _fits(self, what: Any) -> bool:
        size = len(what) if isinstance(what, str) else sum(len(str(v)) for v in what.values())
        fits = self._size + size <= MAX_OUTPUT
        self.truncated = self.truncated or not fits
        self._size = min(MAX_OUTPUT, self._size + size)
        return fits

    def told(self) -> list[dict[str, Any]]:
        for one in self.shown:
            if "pieces" in one:
                one["text"] = "".join(one.pop("pieces"))
        return self.shown


def failure(name: str, value: str, trace: list[str]) -> dict[str, Any]:
    """An error without the colours of a terminal."""
    lines = _ANSI.sub("", "\n".join(map(str, trace)))[-100_000:]
    return {
        "type": "error",
        "name": _ANSI.sub("", str(name))[:200],
        "value": _ANSI.sub("", str(value))[:10_000],
        "traceback": lines,
    }


class _Run:
    """Code while it runs: its reply to come, its input, and its kernel's death are awaited together."""

    def __init__(
        self,
        *,
        ending: asyncio.Future[dict[str, Any]],
        feeding: asyncio.Future[None] | None,
        dying: asyncio.Future[None],
    ) -> None:
        self._ending, self._feeding, self._dying = ending, feeding, dying
        self.starved = False  # it asked for more input than it was given

    @property
    def going(self) -> bool:
        return not self._ending.done() and not self._dying.done()

    @property
    def reply(self) -> dict[str, Any] | None:
        """The kernel's, if it has come. Raises what the wait for it raised."""
        return self._ending.result() if self._ending.done() else None

    @property
    def died(self) -> bool:
        return self._dying.done() and not self._dying.cancelled()

    async def first(self, gone: asyncio.Future[Any], timeout_s: float) -> bool:
        """Wait until anything has happened, or whoever asked is gone. Whether the time was over before that."""
        waits: set[asyncio.Future[Any]] = {self._ending, self._dying, gone}
        waits |= set() if self._feeding is None else {self._feeding}
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        self.starved = self.going and self._feeding is not None and self._feeding.done()
        return not any(one.done() for one in waits)

    async def settled(self, timeout_s: float) -> None:
        waits: set[asyncio.Future[Any]] = {self._ending, self._dying}
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def aclose(self) -> None:
        """Wait for nothing more."""
        tasks = [one for one in (self._ending, self._feeding, self._dying) if one is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Session:
    """One kernel and what is defined in it."""

    def __init__(self, name: str, kernel: str, folder: str) -> None:
        self.name, self.kernel = name, kernel
        self.busy = False
        self.used = time.time()
        self.count = 0
        self._file = os.path.join(folder, f"{os.urandom(6).hex()}.json")
        self._manager: AsyncKernelManager | None = None
        self._client: AsyncKernelClient | None = None

    async def begin(self) -> None:
        """Start the kernel. Raises Refused."""
        spec = KernelSpecManager().get_kernel_spec(self.kernel)
        place = self._file.removesuffix(".json")
        # Sockets in a folder: a cave may have no network, and zmq asks the kernel for its interfaces before it
        # binds a port, which a container may not.
        manager = AsyncKernelManager(
            kernel_name=self.kernel, connection_file=self._file, transport="ipc", ip=place
        )
        for number, port in enumerate(PORTS, 1):
            setattr(manager, port, number)
            if spec.language == "R":  # whose kernel names them as ports are named
                os.symlink(f"{place}:{number}", f"{place}-{number}")
        await manager.start_kernel(cwd=os.getcwd())
        client = manager.client()
        client.start_channels()
        self._manager, self._client = manager, client
        try:
            await client.wait_for_ready(timeout=START_S)
        except RuntimeError as exc:
            await self.close()
            raise Refused("service_failed", f"kernel {self.kernel} did not start: {exc}") from exc

    async def close(self) -> None:
        manager, client = self._manager, self._client
        self._manager = self._client = None
        if client is not None:
            client.stop_channels()
        if manager is not None:
            with contextlib.suppress(Exception):
                await manager.shutdown_kernel(now=True)
            manager.cleanup_connection_file()
            manager.cleanup_ipc_files()

    async def interrupt(self) -> None:
        if self._manager is not None:
            await self._manager.interrupt_kernel()

    async def execute(
        self,
        code: str,
        timeout_s: float,
        stdin: list[str] | None,
        gone: asyncio.Future[Any],
    ) -> dict[str, Any]:
        """Run code and tell what it showed. A kernel that died, or does not give in, starts anew next time."""
        if self._client is None:
            await self.begin()
        assert self._client is not None  # noqa: S101
        began, outputs = time.monotonic(), Outputs()
        asked = self._client.execute(code, allow_stdin=stdin is not None, stop_on_error=False)
        run = _Run(
            ending=asyncio.ensure_future(self._both(asked, outputs)),
            feeding=None if stdin is None else asyncio.ensure_future(self._feed(asked, stdin)),
            dying=asyncio.ensure_future(self._died()),
        )
        try:
            timed_out = await run.first(gone, began + timeout_s - time.monotonic())
            if run.going:
                await self.interrupt()
                await run.settled(GIVE_IN_S)
            reply = run.reply
        finally:
            await run.aclose()
        note = STARVED if run.starved else ""
        if reply is None:
            note = await self._lost(outputs, died=run.died)
            reply = {"status": "error"}
        self.count = reply.get("execution_count") or self.count
        return {
            "session": self.name,
            "kernel": self.kernel,
            "status": reply.get("status", "error"),
            "execution_count": self.count,
            "outputs": outputs.told(),
            "truncated": outputs.truncated,
            "timed_out": timed_out,
            "duration_s": round(time.monotonic() - began, 6),
            "note": note,
        }

    async def _lost(self, outputs: Outputs, *, died: bool) -> str:
        """The kernel is of no use any more: end what is left of it, and say so."""
        await self.close()
        why = "the kernel died" if died else "the kernel did not give in and was ended"
        outputs.shown.append(failure("DeadKernel" if died else "KernelEnded", why, []))
        return f"{why}: what was defined in session {self.name} is gone, and it starts anew"

    async def _both(self, asked: str, outputs: Outputs) -> dict[str, Any]:
        """The kernel's reply, once it is idle again."""
        reply: dict[str, Any]
        reply, _ = await asyncio.gather(self._reply(asked), self._collect(asked, outputs))
        return reply

    async def _reply(self, asked: str) -> dict[str, Any]:
        assert self._client is not None  # noqa: S101
        while True:
            message = await self._client.get_shell_msg()
            if message["parent_header"].get("msg_id") == asked:
                content: dict[str, Any] = message["content"]
                return content

    async def _collect(self, asked: str, outputs: Outputs) -> None:
        assert self._client is not None  # noqa: S101
        while True:
            message = await self._client.get_iopub_msg()
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return
            outputs.take(kind, content)

    async def _feed(self, asked: str, stdin: list[str]) -> None:
        """Answer what it asks for with the given lines; returns when it asks for one more."""
        assert self._client is not None  # noqa: S101
        lines = list(stdin)
        while True:
            message = await self._client.get_stdin_msg()
            if message["parent_header"].get("msg_id") != asked:
                continue
            if not lines:
                return
            self._client.input(lines.pop(0))

    async def _died(self) -> None:
        while self._manager is not None and await self._manager.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(ALIVE_S)

    def describe(self) -> dict[str, Any]:
        return {
            "session": self.name,
            "kernel": self.kernel,
            "busy": self.busy,
            "execution_count": self.count,
            "idle_s": round(time.time() - self.used, 3),
        }


class Kernels:
    """All sessions of this cave."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._sessions: dict[str, Session] = {}
        self._starting = asyncio.Lock()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: lines, and the answer to each before the next. Its end is that of what it asked for."""
        following = asyncio.ensure_future(reader.readline())
        try:
            while line := await following:
                following = asyncio.ensure_future(reader.readline())
                answer = await self._answer(line, following)
                writer.write(json.dumps(answer).encode("utf-8", "replace") + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            return
        finally:
            following.cancel()
            writer.close()

    async def _answer(self, line: bytes, gone: asyncio.Future[bytes]) -> dict[str, Any]:
        try:
            asked = json.loads(line)
            return {"ok": True, **await self._operate(asked, gone)}
        except Refused as exc:
            return exc.head
        except NoSuchKernel as exc:
            known = ", ".join(sorted(_specs()))
            hint = f"There are: {known or 'none'}."
            return Refused("not_found", f"this cave has no kernel {exc.name!r}", hint).head
        except Exception as exc:  # noqa: BLE001  (one request fails, never the others' kernels)
            return Refused("service_failed", f"{type(exc).__name__}: {exc}").head

    async def _operate(self, asked: dict[str, Any], gone: asyncio.Future[bytes]) -> dict[str, Any]:
        op = asked["op"]
        if op == "kernels":
            return {"kernels": list(_specs().values())}
        if op == "sessions":
            return {"sessions": [one.describe() for one in self._sessions.values()]}
        if op == "create":
            return (await self._create(asked["session"], asked["kernel"])).describe()
        if op == "execute":
            return await self._execute(asked, gone)
        session = self._get(asked["session"])
        if op == "interrupt":
            await session.interrupt()
        elif op == "delete":
            del self._sessions[session.name]
            await session.close()
        return session.describe()

    async def _execute(self, asked: dict[str, Any], gone: asyncio.Future[bytes]) -> dict[str, Any]:
        name, kernel = asked["session"], asked["kernel"]
        if name is None:
            session = await self._default(kernel or "python3")
        else:
            session = self._get(name)
        if kernel is not None and kernel != session.kernel:
            raise Refused("conflict", f"session {session.name} runs {session.kernel}")
        if session.busy:
            raise Refused(
                "session_busy",
                f"session {session.name} is running code",
                "Wait for it, interrupt it, or use another session.",
            )
        session.busy = True
        try:
            return await session.execute(asked["code"], asked["timeout_s"], asked["stdin"], gone)
        finally:
            session.busy, session.used = False, time.time()

    async def _default(self, kernel: str) -> Session:
        """The session of those who name none, one for each kernel."""
        async with self._starting:
            name = f"default-{kernel}"
            return self._sessions.get(name) or await self._add(name, kernel)

    async def _create(self, name: str | None, kernel: str | None) -> Session:
        async with self._starting:
            name = name or next(
                free for n in range(1, 1000) if (free := f"k{n}") not in self._sessions
            )
            if name in self._sessions:
                raise Refused("conflict", f"session {name} is already there")
            return await self._add(name, kernel or "python3")

    async def _add(self, name: str, kernel: str) -> Session:
        if len(self._sessions) >= MAX_SESSIONS:
            raise Refused("limit_exceeded", f"{MAX_SESSIONS} sessions are open", "Delete one.")
        session = Session(name, kernel, self._folder)
        await session.begin()
        self._sessions[name] = session
        return session

    def _get(self, name: str) -> Session:
        if name not in self._sessions:
            known = ", ".join(sorted(self._sessions)) or "none"
            raise Refused("session_not_found", f"no such session: {name}", f"There are: {known}.")
        return self._sessions[name]

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()


def _specs() -> dict[str, dict[str, Any]]:
    """The kernels of this cave by name."""
    found = KernelSpecManager().get_all_specs()
    return {
        name: {
            "name": name,
            "title": one["spec"]["display_name"],
            "language": one["spec"]["language"],
        }
        for name, one in sorted(found.items())
    }


async def main(path: str) -> None:
    folder = os.path.dirname(path)
    kernels = Kernels(folder)
    server = await asyncio.start_unix_server(kernels.serve, path, limit=MAX_REQUEST)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(15, ended.set)
    async with server:
        await ended.wait()
    await kernels.close()


if __name__ == "__main__":
    os.umask(0o077)
    asyncio.run(main(sys.argv[1]))

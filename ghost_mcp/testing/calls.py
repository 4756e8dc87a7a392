"""The part of the contract that says what a cave does for a caller: programs, terminals, ports, all on one link."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from ghost_mcp.errors import LimitExceeded, NotFound, Unsupported
from ghost_mcp.testing.basis import PATIENCE_S, Basis, until

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from ghost_mcp.cave import Cave
    from ghost_mcp.process import Process

__all__ = ["Calls"]

# Sends each connection back what came over it; says where it listens.
_ECHO = """
import os, socket, sys
where = sys.argv[1]
server = socket.socket(socket.AF_UNIX if where else socket.AF_INET)
if where and os.path.exists(where):
    os.unlink(where)
server.bind(where or ("127.0.0.1", 0))
server.listen(16)
print("ready", 0 if where else server.getsockname()[1], flush=True)
while True:
    client, _ = server.accept()
    if os.fork() == 0:
        while True:
            data = client.recv(65536)
            if not data:
                os._exit(0)
            client.sendall(data)
    client.close()
"""

_SLEEPER = "import time; print('sleeping', flush=True); time.sleep(99)"


async def _line(process: Process, ending: bytes) -> bytes:
    """What a process prints, up to and with ``ending``."""
    said = b""
    while ending not in said:
        piece = await process.receive()
        assert piece is not None, said
        said += piece[1]
    return said


async def _exactly(stream: ByteStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive()
    return data


class Calls(Basis):
    """exec, process, dial, and what they must not do to each other."""

    async def test_a_programs_output_streams_and_exit_code(self) -> None:
        async with self.cave() as cave:
            done = await cave.exec("printf out; printf err >&2; exit 7")
            assert (done.exit_code, done.stdout, done.stderr) == (7, "out", "err")
            assert not done.timed_out
            assert 0 < done.duration_s < PATIENCE_S
            listed = await cave.exec(["printf", "%s|", "two words", "$HOME", "*"])
            assert listed.stdout == "two words|$HOME|*|"

    async def test_a_program_ended_by_a_signal(self) -> None:
        async with self.cave() as cave:
            assert (await cave.exec("kill -9 $$")).exit_code == 128 + 9

    async def test_environment_and_working_directory(self) -> None:
        async with self.cave(env={"COLOUR": "blue", "SHAPE": "round"}) as cave:
            await cave.call("mkdir", {"path": "below/it"})
            done = await cave.exec(
                'echo "$COLOUR $SHAPE"; pwd', env={"SHAPE": "flat"}, cwd="below/it"
            )
            colours, folder = done.stdout.splitlines()
            assert colours == "blue flat"
            assert folder.endswith("/below/it")
            assert os.path.basename((await cave.exec("pwd")).stdout.strip()) == "workspace"

    @pytest.mark.parametrize("size", [0, 10, 300_000, 3_000_000])
    async def test_input_reaches_the_program_whole(self, size: int) -> None:
        async with self.cave() as cave:
            data = os.urandom(size)
            done = await cave.exec(["cat"], stdin=data)
            assert (done.exit_code, done.stdout_bytes == data) == (0, True)

    async def test_input_that_nobody_reads_holds_nothing_up(self) -> None:
        async with self.cave() as cave:
            with anyio.fail_after(PATIENCE_S):
                assert (await cave.exec(["true"], stdin=bytes(3_000_000))).exit_code == 0

    async def test_output_beyond_the_limit_is_an_error_and_ends_the_program(self) -> None:
        nap = self.nap()
        async with self.cave() as cave:
            with pytest.raises(LimitExceeded):
                await cave.exec(f"head -c 2000000 /dev/zero; sleep {nap}", limit_bytes=1_000_000)
            await until(lambda: self._gone(cave, nap))

    async def test_an_unknown_program_is_not_found(self) -> None:
        async with self.cave() as cave:
            with pytest.raises(NotFound):
                await cave.exec(["no-such-program-here"])

    async def test_a_timeout_ends_the_whole_tree(self) -> None:
        child, orphan = self.nap(), self.nap()
        async with self.cave() as cave:
            with anyio.fail_after(PATIENCE_S):
                done = await cave.exec(
                    f"(setsid sleep {orphan} >/dev/null 2>&1 &); echo begun; sleep {child}",
                    timeout_s=2.0,
                )
            assert done.timed_out
            assert done.stdout == "begun\n"
            for nap in (child, orphan):
                await until(lambda nap=nap: self._gone(cave, nap))  # type: ignore[misc]

    async def test_what_a_program_leaves_behind_does_not_hold_its_answer_back(self) -> None:
        nap = self.nap()
        async with self.cave() as cave:
            with anyio.fail_after(PATIENCE_S):
                done = await cave.exec(f"sleep {nap} & echo done")
            assert done.stdout == "done\n"
            await until(lambda: self.runs(cave, nap))  # its shell may not have got there yet

    async def test_a_cancelled_call_ends_its_program(self) -> None:
        nap = self.nap()
        async with self.cave() as cave:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cave.exec, ["sleep", nap])
                await until(lambda: self.runs(cave, nap))
                tasks.cancel_scope.cancel()
            await until(lambda: self._gone(cave, nap))

    async def _gone(self, cave: Cave, nap: str) -> bool:
        return not await self.runs(cave, nap)

    async def test_a_conversation_with_a_program(self) -> None:
        async with self.cave() as cave, cave.process(["cat"]) as cat:
            with anyio.fail_after(PATIENCE_S):
                for word in (b"one\n", b"two\n"):
                    await cat.send(word)
                    assert await cat.receive() == (1, word)
                assert cat.poll() is None
                await cat.send_eof()
                assert await cat.wait() == 0
                assert cat.poll() == 0

    async def test_leaving_a_process_ends_it(self) -> None:
        nap = self.nap()
        async with self.cave() as cave:
            async with cave.process(["sleep", nap]):
                await until(lambda: self.runs(cave, nap))
            await until(lambda: self._gone(cave, nap))

    async def test_a_signal_reaches_the_program(self) -> None:
        line = 'trap "echo caught; exit 3" TERM; sleep 60 & echo ready; wait'
        async with self.cave() as cave, cave.process(line) as process:
            with anyio.fail_after(PATIENCE_S):
                await _line(process, b"ready\n")
                await process.terminate()
                await _line(process, b"caught\n")
                assert await process.wait() == 3

    async def test_a_terminal(self) -> None:
        async with self.cave() as cave, cave.process(["sh"], pty=(24, 80)) as terminal:
            with anyio.fail_after(PATIENCE_S):
                await terminal.send(b"stty -echo; PS1=; tty >/dev/null && echo is-$((1+1))\n")
                await _line(terminal, b"is-2\r\n")
                await terminal.send(b"stty size\n")
                assert await _line(terminal, b"\r\n") == b"24 80\r\n"
                await terminal.resize(40, 120)
                await terminal.send(b"stty size\n")
                assert await _line(terminal, b"\r\n") == b"40 120\r\n"
                # What speaks and what sleeps is one program: a shell that becomes another loses the key on its way.
                program = shlex.join([*self.python, _SLEEPER])
                await terminal.send(f"trap 'echo stopped' INT; {program}\n".encode())
                await _line(terminal, b"sleeping\r\n")
                await terminal.send(b"\x03")
                await _line(terminal, b"stopped\r\n")
                await terminal.send(b"exit 5\n")
                assert await terminal.wait() == 5

    @asynccontextmanager
    async def _server(self, cave: Cave, path: str = "") -> AsyncIterator[int]:
        """An echo server in the cave; its port."""
        async with cave.process([*self.python, _ECHO, path]) as server:
            with anyio.fail_after(PATIENCE_S):
                said = await _line(server, b"\n")
            yield int(said.split()[1])

    async def test_a_port_is_dialled(self) -> None:
        block = os.urandom(1 << 20)
        async with self.cave() as cave, self._server(cave) as port:
            with anyio.fail_after(PATIENCE_S):
                async with cave.dial(port) as stream, anyio.create_task_group() as tasks:
                    tasks.start_soon(stream.send, block)
                    assert await _exactly(stream, len(block)) == block
                async with cave.dial(port) as stream:
                    await stream.send(b"last")
                    await stream.send_eof()
                    assert await _exactly(stream, 4) == b"last"
                    with pytest.raises(anyio.EndOfStream):
                        await stream.receive()

    async def test_a_unix_socket_is_dialled(self) -> None:
        async with self.cave() as cave:
            folder = (await cave.exec("pwd")).stdout.strip()
            async with (
                self._server(cave, f"{folder}/socket"),
                cave.dial(path=f"{folder}/socket") as stream,
            ):
                with anyio.fail_after(PATIENCE_S):
                    await stream.send(b"hello")
                    assert await _exactly(stream, 5) == b"hello"

    async def test_a_closed_port_is_an_error(self) -> None:
        async with self.cave() as cave:
            with pytest.raises(NotFound) as caught:
                async with cave.dial(1):
                    pass
            assert caught.value.code == "connection_refused"

    async def test_a_flood_starves_neither_a_terminal_nor_a_port(self) -> None:
        received = [0]

        async def drain(process: Process) -> None:
            while (piece := await process.receive()) is not None:
                received[0] += len(piece[1])

        block = os.urandom(50_000)
        async with (
            self.cave() as cave,
            self._server(cave) as port,
            cave.process(["cat", "/dev/zero"]) as unread,
            cave.process(["cat", "/dev/zero"]) as torrent,
            cave.process(["sh"], pty=(24, 80)) as terminal,
            cave.dial(port) as stream,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(drain, torrent)
            with anyio.fail_after(2 * PATIENCE_S):
                await terminal.send(b"stty -echo; PS1=; echo is-$((1+1))\n")
                await _line(terminal, b"is-2\r\n")
                for number in range(40):
                    await stream.send(block)
                    assert await _exactly(stream, len(block)) == block
                    await terminal.send(f"echo $(({number}*7))\n".encode())
                    assert await _line(terminal, b"\r\n") == f"{number * 7}\r\n".encode()
                    assert (await cave.exec(["echo", str(number)])).stdout == f"{number}\n"
            assert received[0] > len(block)
            assert (unread.poll(), torrent.poll()) == (None, None)
            tasks.cancel_scope.cancel()

    async def test_many_programs_at_once_on_one_link(self) -> None:
        outputs: dict[int, str] = {}

        async def run(cave: Cave, number: int) -> None:
            outputs[number] = (await cave.exec(f"echo {number}; sleep 0.2; echo end")).stdout

        async with self.cave() as cave:
            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    for number in range(30):
                        tasks.start_soon(run, cave, number)
        assert outputs == {number: f"{number}\nend\n" for number in range(30)}

    async def test_an_unknown_operation_is_unsupported(self) -> None:
        async with self.cave() as cave:
            with pytest.raises(Unsupported):
                await cave.call("no-such-operation")
            assert (await cave.exec(["true"])).exit_code == 0

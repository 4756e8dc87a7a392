"""The shell tools on a real cave, called as an adapter calls them."""

from __future__ import annotations

import json
import re
import time
from functools import partial
from typing import Any

import anyio
import pytest

from ghost_mcp import Cave, CaveSpec, Ghost, Limits
from ghost_mcp.errors import (
    Conflict,
    GhostError,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    TimedOut,
)
from ghost_mcp.outputs import Output, read_output, search_output
from ghost_mcp.reply import EXCERPT_CHARS, Reply
from ghost_mcp.testing.basis import until
from ghost_servers.shell import TOOLSET
from tests.servers.using import Use, peak_bytes, reset_peak, user

TOOLS = {tool.name: tool for tool in TOOLSET.tools}
MIB = 1 << 20


@pytest.fixture
def use(cave: Cave) -> Use:
    return user(TOOLSET, cave)


async def running(cave: Cave, words: str) -> list[str]:
    """The live processes of the cave whose command line begins with these words."""
    result = await cave.exec(["ps", "-eo", "stat=,args="])
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    return [args for stat, args in lines if args.startswith(words) and not stat.startswith("Z")]


async def sleepers(cave: Cave, words: str, count: int) -> None:
    """Wait until so many run: one that is forked is not at once what it becomes."""

    async def so_many() -> bool:
        return len(await running(cave, words)) == count

    await until(so_many)


async def begun(use: Use, said: str, **arguments: Any) -> Reply:
    """The first answer of a command that goes on, and has said just this."""
    first = await use("exec", background=True, **arguments)
    heard = first.data["stdout"]
    with anyio.fail_after(30):
        while len(heard) < len(said):
            more = await use("exec", command_id=first.data["command_id"], timeout_s=0.1)
            heard += more.data["stdout"]
    assert heard == said
    return first


# --- exec ------------------------------------------------------------------------------------------


async def test_a_failing_command_is_a_result(use: Use) -> None:
    reply = await use("exec", command="echo out; echo err >&2; exit 3")
    assert reply.data["exit_code"] == 3
    assert (reply.data["stdout"], reply.data["stderr"]) == ("out\n", "err\n")
    assert (reply.data["running"], reply.data["timed_out"]) == (False, False)
    assert reply.text.startswith("out\n[stderr]\nerr\n[exit code 3, ")


async def test_argv_is_read_by_no_shell(use: Use) -> None:
    assert (await use("exec", command=["echo", "$HOME;*"])).data["stdout"] == "$HOME;*\n"


async def test_cwd_and_env(use: Use) -> None:
    reply = await use("exec", command="pwd; echo $A", cwd="/tmp", env={"A": "é"})
    assert reply.data["stdout"] == "/tmp\né\n"


async def test_stdin_is_given_and_ends(use: Use) -> None:
    assert (await use("exec", command="cat", stdin="héllo")).data["stdout"] == "héllo"


async def test_a_command_that_reads_stdin_gets_its_end(use: Use) -> None:
    assert (await use("exec", command="cat; echo read", timeout_s=5)).data["stdout"] == "read\n"


async def test_output_without_a_newline(use: Use) -> None:
    assert (await use("exec", command="printf abc")).data["stdout"] == "abc"


async def test_large_output_is_an_excerpt_and_a_handle(use: Use, cave: Cave) -> None:
    reply = await use("exec", command="seq 700000")
    stdout = reply.data["stdout"]
    assert stdout.startswith("1\n2\n3\n")
    assert stdout.endswith("699999\n700000\n")
    assert len(stdout) < EXCERPT_CHARS + 200
    assert reply.data["stdout_size"] == 4_788_895
    assert f"bytes left out; all: {reply.data['stdout_uri']}" in stdout
    (handle,) = reply.handles
    assert (handle.uri, handle.size_bytes) == (reply.data["stdout_uri"], 4_788_895)
    assert len(reply.text) + len(json.dumps(reply.data)) < 8000
    output = Output.parse(handle.uri).of(cave)
    piece = await read_output(cave, output, offset=4_788_888, count=100)
    assert (piece.data, piece.size, piece.gap) == (b"700000\n", 4_788_895, None)
    records, answer = await search_output(cave, output, {"pattern": "^654321$"})
    assert [(record["line"], record["text"]) for record in records] == [(654321, "654321")]
    assert answer["gap"] is False


async def test_binary_output_is_summarized(use: Use, cave: Cave) -> None:
    made = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4)"
    reply = await use("exec", command=["python3", "-c", made])
    assert reply.data["stdout"].startswith("[binary data, 1.0 KiB: ghost://caves/")
    (handle,) = reply.handles
    assert handle.mime_type == "application/octet-stream"
    piece = await read_output(cave, Output.parse(handle.uri))
    assert piece.data == bytes(range(256)) * 4


async def test_odd_bytes_are_replaced_and_colours_kept(use: Use) -> None:
    printed = r"printf 'a\0b \033[31mred\033[0m and some more text here \377 end'"
    stdout = (await use("exec", command=printed)).data["stdout"]
    assert stdout == "a\ufffdb \x1b[31mred\x1b[0m and some more text here \ufffd end"


async def test_a_character_cut_by_the_excerpt_is_left_out(use: Use) -> None:
    reply = await use("exec", command=["python3", "-c", "print('x' + 'é' * 100_000)"])
    assert "\ufffd" not in reply.data["stdout"]


async def test_a_soft_timeout_hands_back_a_running_command(use: Use) -> None:
    first = await begun(use, "one\n", command="echo one; read -r a; echo got $a")
    assert first.data["running"]
    assert "exit_code" not in first.data
    command = first.data["command_id"]
    polled = await use("exec", command_id=command, timeout_s=0.2)
    assert polled.data["running"]
    assert polled.data["duration_s"] >= 0.2
    last = await use("exec", command_id=command, stdin="it\n", timeout_s=30)
    if last.data["running"]:  # it had written, and not yet ended
        assert last.data["stdout"] == "got it\n"
        last = await use("exec", command_id=command, timeout_s=30)
    assert last.data["exit_code"] == 0


async def test_the_wait_is_not_longer_than_the_soft_timeout(use: Use) -> None:
    began = time.monotonic()
    reply = await use("exec", command="echo before; sleep 600", timeout_s=1.5)
    assert time.monotonic() - began < 30
    assert (reply.data["running"], reply.data["stdout"]) == (True, "before\n")
    assert f"command_id {reply.data['command_id']}" in reply.text


async def test_input_to_a_running_program_is_answered_at_once(use: Use) -> None:
    started = await use("exec", command=["python3", "-i", "-q"], background=True)
    command = started.data["command_id"]
    began = time.monotonic()
    reply = await use("exec", command_id=command, stdin="print(6 * 7)\n", timeout_s=60)
    assert "42\n" in reply.data["stdout"]
    assert reply.data["running"]
    assert time.monotonic() - began < 30
    ended = await use("exec", command_id=command, stdin="print(1)\n", eof=True, timeout_s=20)
    assert ended.data["exit_code"] == 0
    assert "1\n" in ended.data["stdout"]
    with pytest.raises(Conflict, match="has finished"):
        await use("exec", command_id=command, stdin="more")


async def test_polling_shows_only_what_is_new(use: Use, cave: Cave) -> None:
    line = "echo one; until [ -e go ]; do sleep 0.05; done; echo two"
    started = await begun(use, "one\n", command=line)
    await cave.write("go", b"")
    ended = await use("exec", command_id=started.data["command_id"], timeout_s=30)
    assert ended.data["stdout"] == "two\n"
    assert "[only what is new]" in ended.text


async def test_a_pty(use: Use) -> None:
    reply = await use("exec", command="tty && stty size && echo $TERM", pty=True, timeout_s=10)
    assert re.match(r"/dev/pts/\d+\r\n40 120\r\nxterm", reply.data["stdout"])


async def test_a_daemon_does_not_hold_the_answer(use: Use, cave: Cave) -> None:
    began = time.monotonic()
    reply = await use("exec", command="(setsid sleep 4711 &) ; sleep 4712 & echo started")
    assert time.monotonic() - began < 60
    assert (reply.data["exit_code"], reply.data["stdout"]) == (0, "started\n")
    await sleepers(cave, "sleep 471", 2)
    ended = await use("kill", command_id=reply.data["command_id"])
    assert "2 processes" in ended.text
    assert await running(cave, "sleep 471") == []


STUBBORN = """
trap '' TERM HUP INT
setsid sh -c 'trap "" TERM; sleep 4711 & sleep 4711' &
(setsid nohup sh -c 'sleep 4711' >/dev/null 2>&1 &)
env -i setsid sleep 4711 &
echo begun
sleep 4711
"""


@pytest.mark.parametrize("in_session", [False, True])
async def test_a_hard_timeout_leaves_nobody(use: Use, cave: Cave, in_session: bool) -> None:
    extra = {"session": (await use("create_session")).data["session"]} if in_session else {}
    reply = await use("exec", command=STUBBORN, hard_timeout_s=1.5, **extra)
    assert (reply.data["timed_out"], reply.data["running"]) == (True, False)
    assert reply.data["stdout"] == "begun\n"
    assert "killed at its hard timeout" in reply.text
    assert await running(cave, "sleep 4711") == []
    assert (await use("exec", command="echo alive", **extra)).data["stdout"] == "alive\n"


async def test_cancelling_a_call_ends_what_it_started(use: Use, cave: Cave) -> None:
    async with anyio.create_task_group() as tasks:
        line = "setsid sleep 4711 & sleep 4711"
        tasks.start_soon(partial(use, "exec", command=line, timeout_s=60))
        await sleepers(cave, "sleep 4711", 2)
        tasks.cancel_scope.cancel()
    await sleepers(cave, "sleep 4711", 0)
    assert (await use("exec", command="echo alive")).data["stdout"] == "alive\n"


async def test_cancelling_a_poll_ends_nothing(use: Use, cave: Cave) -> None:
    started = await use("exec", command="sleep 4711", background=True)
    await sleepers(cave, "sleep 4711", 1)
    with anyio.move_on_after(0.3) as scope:
        await use("exec", command_id=started.data["command_id"], timeout_s=60)
    assert scope.cancelled_caught
    assert len(await running(cave, "sleep 4711")) == 1


async def test_progress_tells_time_and_the_last_line(
    cave: Cave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ghost_servers.shell.commands.PROGRESS_S", 0.5)
    told: list[tuple[float, str | None]] = []

    async def progress(done: float, total: float | None = None, message: str | None = None) -> None:
        told.append((done, message))

    await user(TOOLSET, cave, progress)(
        "exec", command="echo first; echo newest; sleep 60", timeout_s=3
    )
    assert len(told) >= 2
    assert told[-1][1] == "newest"
    assert 0.4 < told[0][0] < told[-1][0]


async def test_changes_are_told(use: Use) -> None:
    await use("exec", command="mkdir old; touch old/{1..30} stays goes; echo a > grows")
    line = "rm -r old goes; echo b >> grows; mkdir -p new/er; echo > new/er/file; mkdir n; touch n/{1..30}"
    reply = await use("exec", command=line, changes=True)
    assert reply.data["changed"] == {
        "created": ["n/ (30 entries)", "new/", "new/er/", "new/er/file"],
        "modified": ["grows"],
        "removed": ["goes", "old/ (30 entries)"],
    }
    assert "modified: grows" in reply.text
    nothing = await use("exec", command="true", changes=True)
    assert nothing.data["changed"] == {}
    assert "no file changed" in nothing.text


async def test_changes_below_cwd_and_too_many_to_name(use: Use) -> None:
    reply = await use("exec", command="touch {100..199} ../elsewhere", cwd="/tmp", changes=True)
    created = reply.data["changed"]["created"]
    assert created[:2] == ["100", "101"]
    assert created[-1] == "and 80 more"


async def test_a_command_killed_for_memory_says_so(ghost: Ghost) -> None:
    spec = CaveSpec(ephemeral=True, limits=Limits(memory_bytes=96 * MIB))
    async with await ghost.create(spec) as cave:
        if not cave.info.assurance["memory"].enforced:
            pytest.skip(f"not run: {cave.info.assurance['memory'].how}")
        use = user(TOOLSET, cave)
        reply = await use("exec", command=["python3", "-c", "bytearray(400 << 20)"])
        assert reply.data["exit_code"] == 137
        assert "memory limit" in reply.data["note"]
        assert "memory limit" in reply.text
        line = ["python3", "-c", "import sys; sys.stdin.read(1); bytearray(400 << 20)"]
        started = await use("exec", command=line, background=True)
        later = await use("exec", command_id=started.data["command_id"], stdin="x", eof=True)
        assert "memory limit" in later.data["note"]
        killed = await use("exec", command="kill -9 $$")
        assert killed.data["exit_code"] == 137
        assert "note" not in killed.data


@pytest.mark.slow
async def test_a_flood_is_bounded_in_time_and_memory(use: Use, cave: Cave) -> None:
    await use("exec", command="true")
    before = reset_peak()
    reply = await use("exec", command="yes", hard_timeout_s=4, timeout_s=10)
    assert reply.data["timed_out"]
    assert reply.data["stdout_size"] > 20 * MIB
    whole = await use("exec", command="tr '\\0' x </dev/zero | head -c 512M", timeout_s=100)
    assert whole.data["stdout_size"] == 512 * MIB
    assert "not kept" in whole.data["stdout"]
    assert peak_bytes() - before < 32 * MIB
    output = Output.parse(whole.data["stdout_uri"])
    inside = await read_output(cave, output, offset=500 * MIB, count=10)
    assert inside.gap is not None
    assert inside.offset == inside.gap[1] > 500 * MIB
    assert inside.data == b"x" * 10


# --- sessions --------------------------------------------------------------------------------------


async def test_a_session_keeps_its_state(use: Use) -> None:
    opened = await use("create_session", name="work", cwd="/tmp", env={"A": "1"})
    assert opened.data == {"session": "work", "cwd": "/tmp"}
    await use("exec", session="work", command="B=2; f() { echo f$1; }; cd /; sleep 4711 &")
    reply = await use("exec", session="work", command="echo $A $B; f 3; pwd; jobs")
    assert reply.data["stdout"].startswith("1 2\nf3\n/\n[1]+  Running")
    assert (reply.data["session"], reply.data["cwd"]) == ("work", "/")


async def test_exit_in_a_session_returns_and_leaves_it_usable(use: Use) -> None:
    session = (await use("create_session")).data["session"]
    reply = await use("exec", session=session, command="echo x; exit 0")
    assert (reply.data["exit_code"], reply.data["stdout"]) == (0, "x\n")
    assert "fresh" in reply.data["note"]
    assert (await use("exec", session=session, command="echo y")).data["stdout"] == "y\n"


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("cat; echo read", 5),
        ("sleep 4711 & (setsid sleep 4711 &); echo forked", 7),
        ("yes 1234567 | head -c 5000000", 5_000_000),
        ("head -c 300000 /dev/urandom", 300_000),
        ("printf abc", 3),
        ("echo a; exec 2>&1; echo b >&2", 4),
    ],
)
async def test_a_session_answers_and_goes_on(use: Use, cave: Cave, line: str, size: int) -> None:
    session = (await use("create_session")).data["session"]
    reply = await use("exec", session=session, command=line, timeout_s=20)
    assert reply.data["exit_code"] == 0
    output = Output(cave=cave.name, command=reply.data["command_id"], channel="stdout")
    assert (await read_output(cave, output)).size == size
    after = await use("exec", session=session, command="echo next", timeout_s=5)
    assert (after.data["exit_code"], after.data["stdout"]) == (0, "next\n")


async def test_a_session_feeds_a_running_command(use: Use) -> None:
    session = (await use("create_session")).data["session"]
    started = await use("exec", session=session, command="read -r a; echo $a", background=True)
    with pytest.raises(Conflict, match="still running command") as busy:
        await use("exec", session=session, command="true")
    assert "command_id" in busy.value.hint
    command = started.data["command_id"]
    ended = await use("exec", command_id=command, stdin="fed\n", eof=True, timeout_s=10)
    assert (ended.data["exit_code"], ended.data["stdout"]) == (0, "fed\n")
    assert (await use("exec", session=session, command="echo $a")).data["stdout"] == "fed\n"


async def test_a_stuck_shell_is_replaced(use: Use) -> None:
    session = (await use("create_session")).data["session"]
    reply = await use("exec", session=session, command="while :; do :; done", hard_timeout_s=0.3)
    assert reply.data["timed_out"]
    assert "replaced" in reply.data["note"]
    assert (await use("exec", session=session, command="echo new")).data["stdout"] == "new\n"


# --- kill ------------------------------------------------------------------------------------------


async def test_kill_asks_before_it_forces(use: Use) -> None:
    line = "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    started = await begun(use, "ready\n", command=line)
    ended = await use("kill", command_id=started.data["command_id"])
    assert ended.data == {"ended": [started.data["command_id"]], "exit_code": 9}
    last = await use("exec", command_id=started.data["command_id"])
    assert last.data["stdout"] == "asked\n"


async def test_kill_forces_what_does_not_listen(use: Use, cave: Cave) -> None:
    started = await begun(use, "begun\n", command=STUBBORN)
    began = time.monotonic()
    ended = await use("kill", command_id=started.data["command_id"])
    assert time.monotonic() - began < 60
    assert ended.data["exit_code"] == 137
    assert await running(cave, "sleep 4711") == []


async def test_kill_sends_one_signal(use: Use) -> None:
    started = await use("exec", command="sleep 4711", background=True)
    command = started.data["command_id"]
    stopped = await use("kill", command_id=command, signal="STOP")
    assert stopped.data == {"ended": []}
    assert stopped.text == f"SIGSTOP to 1 process of command {command}"
    ended = await use("kill", command_id=command, signal="9")
    assert ended.data == {"ended": [command], "exit_code": 137}


async def test_kill_interrupts_a_session_and_then_ends_it(use: Use, cave: Cave) -> None:
    session = (await use("create_session")).data["session"]
    await use("exec", session=session, command="X=kept; sleep 4712 &")
    busy = await use("exec", session=session, command="sleep 4711", timeout_s=0.2)
    await sleepers(cave, "sleep 4711", 1)  # a signal reaches only what is there
    interrupted = await use("kill", session=session, signal="INT")
    assert interrupted.data["ended"] == [busy.data["command_id"]]
    assert (await use("exec", session=session, command="echo $X")).data["stdout"] == "kept\n"
    again = await use("exec", session=session, command="sleep 4711", timeout_s=0.2)
    ended = await use("kill", session=session)
    assert ended.data["ended"] == [session, again.data["command_id"]]
    assert await running(cave, "sleep 471") == []
    with pytest.raises(NotFound, match="no such session"):
        await use("exec", session=session, command="true")


async def test_killing_an_ended_command_spares_its_session(use: Use, cave: Cave) -> None:
    session = (await use("create_session")).data["session"]
    old = await use("exec", session=session, command="echo old")
    await anyio.sleep(0.05)  # processes are told apart by the clock ticks of their start
    await use("exec", session=session, command="sleep 4711", background=True)
    await sleepers(cave, "sleep 4711", 1)
    nothing = await use("kill", command_id=old.data["command_id"])
    assert nothing.data["ended"] == []
    assert "had ended already" in nothing.text
    assert len(await running(cave, "sleep 4711")) == 1


# --- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "kind", "says"),
    [
        ("exec", {}, InvalidArgument, "give command, or command_id"),
        ("exec", {"command": []}, InvalidArgument, "give command"),
        ("exec", {"command": "true", "colour": 1}, InvalidArgument, "unknown argument 'colour'"),
        ("exec", {"command": "true", "timeout_s": -1}, InvalidArgument, "must be 0 to"),
        ("exec", {"command": "true", "timeout_s": float("nan")}, InvalidArgument, "must be 0 to"),
        ("exec", {"command": "a\0b"}, InvalidArgument, "no program can be given"),
        ("exec", {"command": ["\ud800"]}, InvalidArgument, "half of a character"),
        ("exec", {"command": "x" * 70_000}, LimitExceeded, "60000 bytes"),
        ("exec", {"command": "ä" * 20_000}, LimitExceeded, "60000 bytes"),
        ("exec", {"command": "true", "hard_timeout_s": 0}, InvalidArgument, "more than 0"),
        ("exec", {"command": "cat", "stdin": "x" * 200_000}, LimitExceeded, "196608 bytes"),
        ("exec", {"command": "true", "env": {"A=B": "c"}}, InvalidArgument, "not a variable"),
        ("exec", {"command": "true", "cwd": "/nope"}, NotFound, "no such folder: /nope"),
        ("exec", {"command": ["nope"]}, NotFound, "no such program in the cave: nope"),
        ("exec", {"command": "true", "session": "nope"}, NotFound, "no such session: nope"),
        ("exec", {"command_id": "c99"}, NotFound, "no such command: c99"),
        ("exec", {"command_id": "c1", "command": "true"}, InvalidArgument, "goes with stdin, eof"),
        ("create_session", {"name": "../x"}, InvalidArgument, "not a session name"),
        ("kill", {}, InvalidArgument, "give command_id or session"),
        ("kill", {"command_id": "c1", "signal": "NOPE"}, InvalidArgument, "not a signal"),
        ("kill", {"command_id": "c99"}, NotFound, "no such command"),
        ("kill", {"session": "nope"}, NotFound, "no such session"),
    ],
)
async def test_bad_input_is_refused_in_words(
    use: Use, tool: str, arguments: dict[str, Any], kind: type[GhostError], says: str
) -> None:
    with pytest.raises(kind, match=re.escape(says)):
        await use(tool, **arguments)


async def test_a_silent_cave_is_told_of(
    use: Use, cave: Cave, monkeypatch: pytest.MonkeyPatch
) -> None:
    await use("exec", command="true")
    if not cave.info.assurance["memory"].enforced:
        pytest.skip("not run: a cave cannot be paused here")
    await cave._backend.stop(cave.id, pause=True)
    with monkeypatch.context() as patch:
        patch.setattr("ghost_servers.shell.commands.PATIENCE_S", 0.3)
        with pytest.raises(TimedOut, match="does not answer"):
            await use("exec", command="true")
    await cave.start()
    assert (await use("exec", command="echo back")).data["stdout"] == "back\n"


def test_the_published_size() -> None:
    published = [
        {"name": t.name, "description": t.description, "in": t.input_schema, "out": t.output_schema}
        for t in TOOLSET.tools
    ]
    assert [tool.name for tool in TOOLSET.tools] == ["exec", "create_session", "kill"]
    assert len(json.dumps(published, separators=(",", ":"))) < 2700

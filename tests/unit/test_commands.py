"""Running programs through a real warden: output, input, ends of whole trees, and what is kept."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest

from ghost_mcp.warden import wire

from .conftest import Cave, Client, Conversation, Refused, alone, populated

PYTHON = "/usr/bin/python3"


def collected(stream: Conversation) -> tuple[dict[str, Any], dict[int, bytes]]:
    """The exit and all output by channel."""
    output: dict[int, bytes] = {1: b"", 2: b""}
    while (frame := stream.next()).kind != wire.CLOSE:
        if frame.kind == wire.DATA:
            output[frame.channel] = output.get(frame.channel, b"") + frame.body
    if frame.head["ok"] is not True:
        raise Refused(frame.head)
    return frame.head, output


def until(stream: Conversation, wanted: bytes) -> bytes:
    """Output of channel 1 up to what is wanted."""
    output = b""
    while wanted not in output:
        frame = stream.next()
        assert frame.kind == wire.DATA, frame
        output += frame.body
    return output


# --- a stream ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("echo out; echo err >&2; exit 3", (3, b"out\n", b"err\n")),
        ("printf 'no newline'", (0, b"no newline", b"")),
        (r"printf '\000\001\377'", (0, b"\x00\x01\xff", b"")),
        ("kill -9 $$", (137, b"", b"")),
        ("kill -TERM $$", (143, b"", b"")),
        ("cat", (0, b"", b"")),
        ("echo $0 $#; pwd", (0, b"/usr/bin/bash 0\n/workspace\n", b"")),
        ("nosuchcommand 2>/dev/null", (127, b"", b"")),
        ("ls /proc/self/fd", (0, b"0\n1\n2\n3\n", b"")),
        ("", (0, b"", b"")),
    ],
)
def test_command_lines(warden: Client, line: str, expected: tuple[int, bytes, bytes]) -> None:
    assert warden.run(line) == expected


def test_argv_env_and_cwd(cave: Cave, warden: Client) -> None:
    (cave.workspace / "sub").mkdir()
    code = "import os,sys; print(sys.argv[1:], os.getcwd(), os.environ['A'], os.getsid(0) == os.getpid())"
    stream = warden.open("exec", argv=[PYTHON, "-c", code, "a b", "$c"], env={"A": "é"}, cwd="sub")
    head, output = collected(stream)
    assert output[1].decode() == "['a b', '$c'] /workspace/sub é True\n"
    assert head["exit_code"] == 0
    assert head["timed_out"] is False
    assert 0 < head["duration_s"] < 10


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ({"argv": ["none"]}, "program_not_found"),
        ({"argv": ["./none"]}, "program_not_found"),
        ({"argv": ["./plain"]}, "permission_refused"),
        ({"argv": ["/workspace"]}, "permission_refused"),
        ({"argv": ["./garbage"]}, "io_error"),
        ({"argv": []}, "invalid_argument"),
        ({}, "invalid_argument"),
        ({"argv": ["true", "a\0b"]}, "invalid_argument"),
        ({"line": "a\0b"}, "invalid_argument"),
        ({"argv": ["true"], "cwd": "none"}, "file_not_found"),
        ({"argv": ["true"], "cwd": "plain"}, "file_not_found"),
        ({"argv": ["true"], "env": {"A": "b\0c"}}, "invalid_argument"),
        ({"argv": ["true"], "env": {"A=B": "c"}}, "invalid_argument"),
        ({"argv": ["true"], "env": {"\ud800": "c"}}, "invalid_argument"),
        ({"argv": ["true", "\ud800"]}, "invalid_argument"),
        ({"argv": ["true"], "pty": [1]}, "invalid_argument"),
        ({"argv": ["true"], "timeout_s": "x"}, "invalid_argument"),
    ],
    ids=ascii,
)
def test_what_cannot_run_says_why(
    cave: Cave, warden: Client, head: dict[str, Any], code: str
) -> None:
    (cave.workspace / "plain").write_text("x")
    (cave.workspace / "garbage").write_text("x")
    (cave.workspace / "garbage").chmod(0o755)
    with pytest.raises(Refused) as refused:
        collected(warden.open("exec", **head))
    assert refused.value.code == code
    assert warden.run("echo fine")[1] == b"fine\n"
    assert len(warden.call("commands")[0]["commands"]) == 1


def test_input_as_data(warden: Client) -> None:
    head, output = collected(warden.open("exec", b"body", argv=["cat"], stdin="data"))
    assert (head["exit_code"], output[1]) == (0, b"body")


def test_five_megabytes_in_and_out(warden: Client) -> None:
    """Input and output flow at once, each in its window."""
    data = os.urandom(5 << 20)
    stream = warden.open("exec", line="cat", stdin="open")
    stream.send(data)
    stream.eof()
    head, output = collected(stream)
    assert head["exit_code"] == 0
    assert hashlib.sha256(output[1]).digest() == hashlib.sha256(data).digest()


def test_input_that_nobody_reads_holds_only_its_own_stream(warden: Client) -> None:
    stream = warden.open("exec", argv=["sleep", "60"], stdin="open")
    sent = 0
    while warden.wire.credit(stream.id):
        piece = bytes(min(wire.MAX_DATA, warden.wire.credit(stream.id)))
        warden.send(warden.wire.send_data(stream.id, piece))
        sent += len(piece)
        warden.call("stats")
    assert wire.WINDOW <= sent <= wire.WINDOW + (1 << 18)
    assert warden.run("echo free")[1] == b"free\n"
    stream.reset()
    alone(warden)


def test_a_program_that_ends_before_its_input(warden: Client) -> None:
    stream = warden.open("exec", argv=["true"], stdin="open")
    stream.send(bytes(3 << 20))
    stream.eof()
    assert collected(stream)[0]["exit_code"] == 0


def test_a_flood_leaves_room_for_others(warden: Client) -> None:
    flood = warden.open("exec", argv=["yes"])
    until(flood, b"y\n" * 1000)
    assert warden.run("echo quick")[1] == b"quick\n"
    flood.reset()
    alone(warden)


def test_a_daemon_does_not_hold_its_command(warden: Client) -> None:
    code, out, _ = warden.run("echo before; setsid sleep 60 & echo after")
    assert (code, out) == (0, b"before\nafter\n")
    populated(warden, 2)


SURVIVORS = """
trap '' TERM HUP INT
(setsid sh -c 'trap "" TERM; (setsid sleep 100 &) ; env -i setsid sleep 100 & nohup sleep 100' &)
nohup sleep 100 &
echo ready
while :; do sleep 100; done
"""


def test_a_reset_ends_the_whole_tree(warden: Client) -> None:
    stream = warden.open("exec", line=SURVIVORS)
    until(stream, b"ready\n")
    stream.reset()
    alone(warden)


def test_a_timeout_ends_the_whole_tree(warden: Client) -> None:
    head, output = collected(warden.open("exec", line=SURVIVORS, timeout_s=1.5))
    assert (head["timed_out"], head["exit_code"]) == (True, 137)
    assert output[1] == b"ready\n"
    alone(warden)


def test_a_kill_spares_other_commands_and_workers(cave: Cave, warden: Client) -> None:
    other = warden.open("exec", line="echo here; read x; echo $x", stdin="open")
    until(other, b"here\n")
    first = warden.open("exec", line=SURVIVORS)
    until(first, b"ready\n")
    watch = warden.open("watch", path=".")
    assert watch.next().kind == wire.DATA
    first.reset()
    other.send(b"alive\n")
    assert collected(other)[1][1] == b"alive\n"
    last = warden.open("exec", line=SURVIVORS)
    until(last, b"ready\n")
    late = warden.open("watch", path=".")
    assert late.next().kind == wire.DATA
    last.reset()  # alone now: even a process without a mark is taken for its own
    (cave.workspace / "new").touch()
    assert b'"created"' in watch.next().body
    assert b'"created"' in late.next().body


def test_a_link_that_ends_ends_its_commands(cave: Cave, warden: Client) -> None:
    other = Client(cave.path)
    until(other.open("exec", line=SURVIVORS), b"ready\n")
    other.close()
    alone(warden)


def test_signals_by_note(warden: Client) -> None:
    stream = warden.open(
        "exec", line="trap 'echo got; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    )
    until(stream, b"ready\n")
    warden.send(warden.wire.send_note(stream.id, {"signal": 2}))
    head, output = collected(stream)
    assert (head["exit_code"], output[1]) == (7, b"got\n")


@pytest.mark.parametrize(
    "note",
    [
        {"signal": "x"},
        {"signal": 999},
        {"signal": -9},
        {"resize": 5},
        {"resize": ["a", "b"]},
        {"x": 1},
    ],
    ids=str,
)
def test_bad_notes_harm_nobody(cave: Cave, warden: Client, note: dict[str, Any]) -> None:
    bystander = Client(cave.path)
    for head in ({"pty": [24, 80]}, {}):
        stream = warden.open("exec", line="echo ready; sleep 60", **head)
        until(stream, b"ready")
        warden.send(warden.wire.send_note(stream.id, note))
        assert warden.run("echo fine")[1] == b"fine\n"
    bystander.call("stats")
    bystander.close()


# --- terminals and pipes -------------------------------------------------------------------------


def test_a_terminal(warden: Client) -> None:
    script = (
        "import os, signal, sys\n"
        "def size(*_): os.write(1, b'%d %d\\n' % os.get_terminal_size())\n"
        "signal.signal(signal.SIGWINCH, size)\n"
        "open('/dev/tty').close()\n"
        "print(os.isatty(0), os.isatty(1), os.isatty(2), flush=True)\n"
        "size()\n"
        "for line in sys.stdin: print('line', line.strip(), flush=True)\n"
        "print('end')\n"
    )
    stream = warden.open("exec", argv=[PYTHON, "-c", script], pty=[40, 132], stdin="open")
    assert until(stream, b"40\r\n") == b"True True True\r\n132 40\r\n"
    warden.send(warden.wire.send_note(stream.id, {"resize": [50, 100]}))
    assert until(stream, b"\n") == b"100 50\r\n"
    stream.send(b"hello\n")
    assert until(stream, b"line").startswith(b"hello\r\n")
    stream.eof()
    head, output = collected(stream)
    assert output[1].endswith(b"end\r\n")
    assert head["exit_code"] == 0


def test_a_terminals_interrupt_key(warden: Client) -> None:
    stream = warden.open("exec", line="echo ready; sleep 60", pty=[24, 80], stdin="open")
    until(stream, b"ready\r\n")
    stream.send(b"\x03")
    assert collected(stream)[0]["exit_code"] == 130


def test_pipes_beside_the_standard_ones(warden: Client) -> None:
    line = "head -c 5 <&3 >&4; echo out; echo err >&2"
    stream = warden.open("exec", line=line, pipes=True)
    stream.send(b"hello")
    head, output = collected(stream)
    assert output == {1: b"out\n", 2: b"err\n", 4: b"hello"}
    assert head["exit_code"] == 0


# --- kept ----------------------------------------------------------------------------------------


def kept(warden: Client, op: str = "exec", **head: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The status, and what of each channel came with it."""
    status, body = warden.call(op, **({"keep": True} if op == "exec" else {}), **head)
    output = {}
    for channel, part in status["output"].items():
        size = part["head"] + part["tail"]
        output[channel], body = body[:size], body[size:]
    assert not body
    return status, output


def test_a_kept_command_answers_with_its_output(warden: Client) -> None:
    status, output = kept(warden, line="echo out; echo err >&2; exit 4")
    assert (status["exit_code"], status["running"]) == (4, False)
    assert output == {"1": b"out\n", "2": b"err\n"}
    assert warden.call("output", id=status["id"], channel=2)[1] == b"err\n"
    assert warden.call("output", id=status["id"], offset=1, count=2)[1] == b"ut"


def test_a_command_goes_on_in_the_background(cave: Cave, warden: Client) -> None:
    line = "echo one; read x; echo two $x; read y; echo three"
    status, output = kept(warden, line=line, stdin="open", wait_s=0)
    assert status["running"] is True
    name = status["id"]
    assert warden.call("command", b"go\n", id=name, action="input")[0]["running"] is True
    other = Client(cave.path)  # another hub finds it
    other.call("command", b"\n", id=name, action="input", eof=True)
    status, output = kept(other, "command", id=name, action="wait", wait_s=20)
    other.close()
    assert (status["running"], output["1"]) == (False, b"one\ntwo go\nthree\n")
    status, output = kept(warden, "command", id=name, action="wait", since={"1": 4})
    assert output["1"] == b"two go\nthree\n"
    with pytest.raises(Refused, match="conflict"):
        warden.call("command", b"x", id=name, action="input")


def test_waiting_is_bounded_and_giving_up_a_wait_kills_nothing(warden: Client) -> None:
    status, _ = kept(warden, line="sleep 60", wait_s=0.05)
    waiting = warden.open("command", id=status["id"], action="wait")
    waiting.reset()
    assert kept(warden, "command", id=status["id"], action="wait", wait_s=0.05)[0]["running"]
    assert warden.call("command", id=status["id"], action="signal", signal=9)[0]["reached"] >= 1
    assert kept(warden, "command", id=status["id"], action="wait")[0]["exit_code"] == 137


def test_a_flood_is_kept_at_both_ends(warden: Client) -> None:
    line = f"{PYTHON} -c \"import sys; sys.stdout.writelines(b'%09d\\n'.decode() % n for n in range(4_000_000))\""
    status, output = kept(warden, line=line, excerpt=1000)
    part = status["output"]["1"]
    assert part["size"] == 40_000_000
    assert part["gap"] == [8 << 20, 40_000_000 - (8 << 20)]
    assert output["1"].startswith(b"000000000\n000000001\n")
    assert output["1"].endswith(b"\n003999999\n")
    head, data = warden.call("output", id=status["id"], offset=40_000_000 - 30, count=100)
    assert data == b"003999997\n003999998\n003999999\n"
    head, data = warden.call("output", id=status["id"], offset=10 << 20, count=10)
    assert head["offset"] == part["gap"][1]
    head, data = warden.call("output", id=status["id"], offset=(8 << 20) - 5, count=100)
    assert (head["offset"], len(data)) == ((8 << 20) - 5, 5)


def test_exactly_what_the_spool_keeps(warden: Client) -> None:
    code = "import os; os.write(1, b'')\nfor n in range(256): os.write(1, bytes([n]) * 65536)"
    status, _ = kept(warden, argv=[PYTHON, "-c", code], excerpt=0)
    assert status["output"]["1"]["size"] == 16 << 20
    assert status["output"]["1"]["gap"] is None
    data = b""
    while len(data) < 16 << 20:
        data += warden.call("output", id=status["id"], offset=len(data), count=196_608)[1]
    assert data == b"".join(bytes([n]) * 65536 for n in range(256))


def test_the_commands_of_a_cave(warden: Client) -> None:
    for _ in range(70):
        warden.call("exec", argv=["true"], keep=True, excerpt=0)
    kept(warden, line="sleep 60", wait_s=0)
    listed = warden.call("commands")[0]["commands"]
    assert [c["id"] for c in listed] == [f"c{n}" for n in range(70 - 64 + 1, 72)]
    assert listed[-1]["running"] is True
    with pytest.raises(Refused, match="command_not_found"):
        warden.call("output", id="c1")
    assert warden.run("ls /run/ghost/out | wc -l")[1].strip() == b"0"


def test_the_newest_commands_are_listed_when_not_all_fit(warden: Client) -> None:
    for _ in range(100):
        warden.call("exec", line="sleep 60 # " + "漢" * 300, keep=True, wait_s=0)
    answer = warden.call("commands")[0]
    listed = answer["commands"]
    assert listed[-1]["id"] == "c100"
    assert len(listed) + answer["omitted"] == 100
    assert len(listed) > 30


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ({"id": "c99"}, "command_not_found"),
        ({"action": "fly"}, "invalid_argument"),
        ({"action": "signal", "signal": "x"}, "invalid_argument"),
        ({"action": "signal", "signal": 999}, "invalid_argument"),
        ({"action": "input"}, "conflict"),
        ({"action": "resize", "size": [1, 1]}, "invalid_argument"),
        ({"action": "wait", "wait_s": "x"}, "invalid_argument"),
        ({"action": "wait", "since": 5}, "invalid_argument"),
        ({"action": "wait", "excerpt": "x"}, "invalid_argument"),
    ],
    ids=str,
)
def test_bad_controls_say_why(warden: Client, head: dict[str, Any], code: str) -> None:
    name = kept(warden, argv=["sleep", "60"], wait_s=0)[0]["id"]
    with pytest.raises(Refused, match=code):
        warden.call("command", **{"id": name, **head})


def test_input_beyond_the_bound_is_refused(warden: Client) -> None:
    name = kept(warden, argv=["sleep", "60"], stdin="open", wait_s=0)[0]["id"]
    for _ in range(5):  # a pipe and the bound take a mebibyte
        warden.call("command", bytes(200_000), id=name, action="input")
    warden.call("command", bytes(100_000), id=name, action="input")
    with pytest.raises(Refused, match="limit_exceeded"):
        warden.call("command", bytes(200_000), id=name, action="input")


def test_programs_start_with_signals_as_usual(warden: Client) -> None:
    assert warden.run("yes | head -n1; echo ${PIPESTATUS[0]}")[1] == b"y\n141\n"
    status = warden.run("grep -E 'Sig(Ign|Blk)' /proc/self/status")[1].split()
    blocked, ignored = int(status[1], 16), int(status[3], 16)
    internal = 3 << 31  # 32 and 33 belong to the C library, which ignores them itself
    assert blocked | ignored & ~internal == 0

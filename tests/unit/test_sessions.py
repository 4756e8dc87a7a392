"""Sessions through a real warden: one shell keeps its state, and no command can leave it unusable."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Cave, Client, Refused, alone, populated

PYTHON = "/usr/bin/python3"


class Session:
    """A session, and its commands' exit codes and output."""

    def __init__(self, client: Client, **head: Any) -> None:
        self.client = client
        self.name = client.call("session", action="create", **head)[0]["name"]
        self.status: dict[str, Any] = {}

    def run(self, line: str, body: bytes = b"", **head: Any) -> tuple[int | None, bytes, bytes]:
        head = {"keep": True, "session": self.name, "excerpt": 65_536, **head}
        self.status, data = self.client.call("exec", body, line=line, **head)
        pieces = []
        for channel in ("1", "2"):
            part = self.status["output"][channel]
            size = part["head"] + part["tail"]
            pieces.append(data[:size])
            data = data[size:]
        return (self.status["exit_code"], *pieces)

    def free(self) -> None:
        """Return when the session's command has ended."""
        while any(
            s["busy"]
            for s in self.client.call("session", action="list")[0]["sessions"]
            if s["name"] == self.name
        ):
            continue

    def echo(self) -> None:
        """The next command is answered as if nothing had been."""
        assert self.run("echo next; echo error >&2; (exit 5)") == (5, b"next\n", b"error\n")


@pytest.fixture
def session(warden: Client) -> Session:
    return Session(warden)


def test_a_session_keeps_its_state(cave: Cave, session: Session) -> None:
    (cave.workspace / "a b").mkdir()
    assert (
        session.run("cd 'a b'; X=1; export Y=2; f() { echo f $1; }; set -o noclobber; umask 077")[0]
        == 0
    )
    assert session.status["cwd"] == "/workspace/a b"
    out = session.run("pwd; echo $X; env | grep ^Y; f 3; set -o | grep noclobber; umask")[1]
    assert out == b"/workspace/a b\n1\nY=2\nf 3\nnoclobber      \ton\n0077\n"
    session.run("sleep 60 &\nJOB=$!")
    assert session.run("jobs -p | wc -l; kill $JOB; wait $JOB; echo $?")[1] == b"1\n143\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("echo x; exit 0", (0, b"x\n", b"")),
        ("exit 7", (7, b"", b"")),
        ("printf 'no newline'", (0, b"no newline", b"")),
        (r"printf '\000\377\001'", (0, b"\x00\xff\x01", b"")),
        ("cat", (0, b"", b"")),
        ("read x; echo $?", (0, b"1\n", b"")),
        ("false", (1, b"", b"")),
        ("return 3", (3, b"", b"")),
        ("set -e; false; echo unreachable", (1, b"", b"")),
        ("set -u; echo $none", (127, b"", None)),
        ("trap 'echo bye' EXIT; exit 4", (4, b"bye\n", b"")),
        ("kill -9 $$", (137, b"", b"")),
        ("exec true", (0, b"", b"")),
        ("exec echo replaced", (0, b"replaced\n", b"")),
        ("exec >/dev/null; echo lost", (0, b"", b"")),
        ("exec 8<&- 9>&-; echo closed", (0, b"closed\n", b"")),
        ("break; echo lost", (0, b"", b"")),
        ("# nothing", (0, b"", b"")),
        ("", (0, b"", b"")),
        ("cat <<END\n$((1+1))\nEND", (0, b"2\n", b"")),
        ("ghost_n=/etc/passwd; echo mine", (0, b"mine\n", b"")),
        ("echo one; sleep 60 & echo two", (0, b"one\ntwo\n", b"")),
        ("setsid sleep 60 >/dev/null 2>&1 & disown; echo on", (0, b"on\n", b"")),
        ("nohup sh -c 'sleep 60' & echo on", (0, b"on\n", None)),
        ("PWD=/nowhere; echo x", (0, b"x\n", b"")),
        ("PWD=$(head -c 300000 /dev/zero | tr '\\0' x); echo x", (0, b"x\n", b"")),
        ("PWD=$(printf '\\377\\n'); echo x", (0, b"x\n", b"")),
        ("printf() { :; }; read() { return 1; }; echo x", (0, b"x\n", b"")),
        ("alias printf=false echo=false; IFS=abc; echo x", (0, b"x\n", b"")),
        ("mkdir gone; cd gone; rmdir ../gone; echo x", (0, b"x\n", b"")),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_every_command_returns_and_leaves_the_next_one_working(
    session: Session, line: str, expected: tuple[int, bytes, bytes | None]
) -> None:
    code, out, err = session.run(line)
    assert (code, out) == expected[:2]
    assert expected[2] is None or err == expected[2]
    session.echo()


@pytest.mark.parametrize("line", ["if", "echo 'open", "fi", "echo $(", "a() {", "echo ${"])
def test_what_is_no_shell_code_is_an_error(session: Session, line: str) -> None:
    code, _, err = session.run(line)
    assert code != 0
    assert b"syntax error" in err or b"unexpected" in err or b"bad substitution" in err
    session.echo()


def test_a_fresh_shell_starts_where_the_last_one_was(cave: Cave, session: Session) -> None:
    (cave.workspace / "sub").mkdir()
    session.run("cd sub; X=1")
    session.run("echo x; exit 0")
    assert "starts fresh in the directory this one started in" in session.status["note"]
    assert session.run("pwd; echo [$X]")[1] == b"/workspace/sub\n[]\n"
    assert "note" not in session.status


def test_input(session: Session) -> None:
    assert session.run("read a; read b; echo $b $a", b"1\n2\n")[1] == b"2 1\n"
    assert session.run("wc -c", bytes(1 << 17), stdin="data")[1] == b"131072\n"
    session.echo()


def test_open_input(session: Session) -> None:
    assert session.run("read x; echo got $x; cat", stdin="open", wait_s=0)[0] is None
    name = session.status["id"]
    session.client.call("command", b"one\n", id=name, action="input")
    session.client.call("command", b"rest", id=name, action="input", eof=True)
    status, data = session.client.call("command", id=name, action="wait", wait_s=20)
    assert (status["exit_code"], data) == (0, b"got one\nrest")
    session.echo()


def test_five_megabytes(session: Session) -> None:
    code, out, _ = session.run(f"{PYTHON} -c \"print('x' * 5_000_000, end='')\"", excerpt=100)
    assert (code, out) == (0, b"x" * 100)
    assert session.status["output"]["1"]["size"] == 5_000_000
    session.echo()


def test_what_a_command_left_running_may_go_on_writing(cave: Cave, session: Session) -> None:
    """Also when the command itself is long forgotten."""
    (cave.workspace / "more").write_text("")
    job = "while sleep 0.01; do echo line; echo line >&2; echo . >> more; done"
    session.run(f"{job} & JOB=$!")
    first = session.status["id"]
    for _ in range(70):
        session.run("true")
    with pytest.raises(Refused, match="command_not_found"):
        session.client.call("output", id=first)
    (cave.workspace / "more").write_text("")
    assert (
        session.run(
            "until [ $(wc -l < more) -gt 3 ]; do sleep 0.01; done; kill $JOB && echo alive"
        )[1]
        == b"alive\n"
    )


def test_a_busy_session_says_so(warden: Client, session: Session) -> None:
    session.run("echo begun; sleep 60", wait_s=0)
    populated(warden, 3)  # a signal reaches only what is there
    with pytest.raises(Refused, match="session_busy"):
        session.run("echo x")
    name = session.status["id"]
    listed = session.client.call("session", action="list")[0]["sessions"]
    assert [s["busy"] for s in listed] == [name]
    session.client.call("command", id=name, action="signal", signal=15)
    assert session.client.call("command", id=name, action="wait")[0]["exit_code"] == 143
    session.echo()


def test_a_timeout_ends_the_command_and_not_the_session(session: Session) -> None:
    session.run("X=kept")
    assert session.run("echo begun; sleep 60", timeout_s=1)[:2] == (137, b"begun\n")
    assert session.status["timed_out"] is True
    assert session.run("echo $X")[1] == b"kept\n"


def test_a_shell_that_loops_is_replaced(session: Session) -> None:
    code, out, _ = session.run("trap '' TERM INT; echo begun; while :; do :; done", timeout_s=1)
    assert (code, out) == (137, b"begun\n")
    assert "replaced" in session.status["note"]
    session.echo()


def test_a_reset_ends_what_the_command_started(warden: Client, session: Session) -> None:
    session.run("sleep 61 & KEPT=$!; sleep 0.02")  # the clock of processes has ticks of 10 ms
    head = {"line": "setsid sleep 60 & sleep 60", "session": session.name, "keep": True}
    stream = warden.open("exec", **head)
    populated(warden, 5)
    stream.reset()
    session.free()
    populated(warden, 3)
    assert session.run("kill $KEPT && echo still there")[1] == b"still there\n"


def test_closing_ends_everything(warden: Client, session: Session) -> None:
    session.run("setsid sleep 60 & nohup sleep 60 & sleep 60 & disown -a")
    warden.call("session", action="close", name=session.name)
    alone(warden)
    with pytest.raises(Refused, match="session_not_found"):
        session.run("echo x")


def test_sessions_are_apart(warden: Client) -> None:
    first = Session(warden, name="first", env={"A": "1"})
    second = Session(warden, name="second", cwd="/tmp")
    first.run("sleep 60", wait_s=0)
    assert second.run("pwd; echo [$A]")[1] == b"/tmp\n[]\n"
    warden.call("command", id=first.status["id"], action="signal", signal=9)
    second.echo()
    first.free()
    assert first.run("echo $A")[1] == b"1\n"
    with pytest.raises(Refused, match="conflict"):
        Session(warden, name="first")


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ({"action": "create", "name": "a/b"}, "invalid_argument"),
        ({"action": "create", "name": "x" * 41}, "invalid_argument"),
        ({"action": "create", "name": "ü"}, "invalid_argument"),
        ({"action": "create", "cwd": "none"}, "file_not_found"),
        ({"action": "create", "env": {"A": "\0"}}, "invalid_argument"),
        ({"action": "close", "name": "none"}, "session_not_found"),
        ({"action": "fly"}, "invalid_argument"),
    ],
    ids=ascii,
)
def test_bad_sessions_say_why(warden: Client, head: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused, match=code):
        warden.call("session", **head)
    assert warden.call("session", action="list")[0]["sessions"] == []


@pytest.mark.parametrize(
    "head",
    [
        {"line": None},
        {"cwd": "/"},
        {"env": {"A": "1"}},
        {"pty": [1, 1]},
        {"keep": False},
        {"line": "a\0b"},
        {"line": "\ud800"},
        {"timeout_s": "x"},
    ],
    ids=ascii,
)
def test_bad_session_commands_say_why(session: Session, head: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="invalid_argument"):
        session.run(**{"line": "true", **head})
    session.echo()


def test_too_many_sessions(warden: Client) -> None:
    for _ in range(32):
        Session(warden)
    with pytest.raises(Refused, match="limit_exceeded"):
        Session(warden)


def test_a_session_without_bash(cave: Cave, warden: Client) -> None:
    """POSIX sh runs the same loop."""
    (cave.workspace / "bin").mkdir()
    (cave.workspace / "bin" / "sh").symlink_to("/bin/dash")
    session = Session(warden, env={"PATH": "/workspace/bin"})
    assert session.run("X=1; cd /; echo $0")[0] == 0
    assert session.run("pwd; echo $X")[1] == b"/\n1\n"
    assert session.run("echo x; exit 3")[:2] == (3, b"x\n")
    session.echo()

"""``create``, ``list``, ``info``, ``start``, ``stop``, ``destroy``, ``logs``."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import GHOST, Cli, document

if TYPE_CHECKING:
    from pathlib import Path


def known(cli: Cli) -> dict[str, Any]:
    return {info["name"]: info for info in document(cli("list", "--json"))}


def test_a_cave_from_beginning_to_end(cli: Cli) -> None:
    assert cli("create", "whole").stdout == b"created whole\n"
    assert known(cli)["whole"]["state"] == "running"
    cli("exec", "whole", "open('kept', 'w').write('here')")
    assert cli("stop", "whole").stdout == b"stopped whole\n"
    assert known(cli)["whole"]["state"] == "stopped"
    assert cli("start", "whole").stdout == b"started whole\n"
    assert cli("exec", "whole", "print(open('kept').read())").stdout == b"here\n"
    assert cli("stop", "--pause", "whole").stdout == b"paused whole\n"
    assert known(cli)["whole"]["state"] == "paused"
    cli("start", "whole")
    log = cli("logs", "whole").stdout
    assert b"start python3 -c open('kept', 'w')" in log
    assert document(cli("logs", "whole", "--json"))["log"].encode().startswith(log[:40])
    assert cli("destroy", "whole").stdout == b"destroyed whole\n"
    assert "whole" not in known(cli)
    cli("info", "whole", code=4)


def test_every_setting_reaches_the_cave(cli: Cli, tmp_path: Path) -> None:
    settings = (
        *("--memory", "256m", "--cpu", "0.5", "--pids", "64", "--timeout", "1h"),
        *("--idle-timeout", "10m", "--env", "A=b=c", "--env", "OURS", "--secret", "TOKEN"),
        *("--label", "team=blue"),
    )
    made = document(cli("create", "set", *settings, "--json", OURS="mine", TOKEN="s3cret-value"))  # noqa: S106
    try:
        spec = made["spec"]
        assert spec["limits"] | {"tmp_bytes": None} == {
            "cpus": 0.5,
            "memory_bytes": 256 << 20,
            "pids": 64,
            "disk_bytes": None,
            "tmp_bytes": None,
        }
        assert (spec["timeout_s"], spec["idle_timeout_s"]) == (3600, 600)
        assert spec["env"] == {"A": "b=c", "OURS": "mine"}
        assert (spec["secrets"], spec["labels"]) == (["TOKEN"], {"team": "blue"})
        assert 3500 < made["deadline_at"] - time.time() <= 3600
        seen = cli("exec", "set", "--", "sh", "-c", "echo $A-$OURS-$TOKEN").stdout
        assert seen == b"b=c-mine-************\n"
        right = ("sh", "-c", '[ "$TOKEN" = "s3cret""-value" ]')
        cli("exec", "set", "--", *right)
        shown = cli("info", "set").stdout
        for text in (b"256.0 MiB", b"of at most 64", b"ends in 59m", b"TOKEN", b"team=blue"):
            assert text in shown, shown
        assert b"s3cret-value" not in shown + cli("info", "set", "--json").stdout
    finally:
        cli("destroy", "set")


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root can set a disk limit")
def test_a_disk_limit_holds(cli: Cli) -> None:
    cli("create", "full", "--disk", "16m")
    try:
        done = cli("exec", "full", "--", "sh", "-c", "head -c 64m /dev/zero > f; wc -c < f", code=0)
        assert int(done.stdout) < 16 << 20
        assert b"No space left on device" in done.stderr
    finally:
        cli("destroy", "full")


def test_a_workspace_of_ours(cli: Cli, state_dir: Path) -> None:
    folder = state_dir / "shared"
    folder.mkdir()
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    os.chown(folder, owner, -1)
    cli("create", "shared", "--workspace", str(folder))
    try:
        cli("exec", "shared", "open('made-inside', 'w').write('x')")
        made = folder / "made-inside"
        assert made.read_text() == "x"
        assert made.stat().st_uid == owner
        assert stat.S_ISREG(made.stat().st_mode)
    finally:
        cli("destroy", "shared")
    assert made.exists()


def test_info_says_what_is_enforced(cli: Cli, named: str) -> None:
    told = document(cli("info", named, "--json"))
    assert told["assurance"]["isolation"]["enforced"] is True
    assert told["usage"].keys() >= {"memory_bytes", "pids"}
    shown = cli("info", named).stdout.decode()
    for name in told["assurance"]:
        assert name in shown
    assert document(cli("info", told["id"], "--json"))["name"] == named


def test_a_table_for_people(cli: Cli, named: str) -> None:
    lines = cli("list").stdout.decode().splitlines()
    assert lines[0].split() == ["NAME", "STATE", "BACKEND", "AGE", "ENDS", "IN", "ID"]
    row = next(line for line in lines if line.startswith(named))
    column = lines[0].index("STATE")
    assert row[column:].startswith("running")


def test_destroying_several_is_all_or_none(cli: Cli) -> None:
    for name in ("one", "two"):
        cli("create", name)
    done = cli("destroy", "one", "nosuchcave", "two", code=4)
    assert b"no such cave: nosuchcave" in done.stderr
    assert {"one", "two"} <= set(known(cli))
    told = document(cli("destroy", "one", "two", "one", "--json"))
    assert told == {"destroyed": ["one", "two"]}
    assert not {"one", "two"} & set(known(cli))


def test_destroy_all_leaves_live_sessions_alone(cli: Cli, state_dir: Path) -> None:
    folder = state_dir / "all"
    folder.mkdir(0o711)
    there = {"GHOST_STATE_DIR": str(folder)}
    cli("create", "mine", **there)
    argv = [*GHOST, "mcp"]
    call = (
        b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
        b'"capabilities":{},"clientInfo":{"name":"t","version":"0"}}}\n'
        b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n'
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"file_list","arguments":{}}}\n'
    )
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **there}
    ) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(call)
        session.stdin.flush()
        while b'"id":1' not in session.stdout.readline():
            assert session.poll() is None
        names = {i["name"]: i for i in document(cli("list", "--json", **there))}
        assert len(names) == 2
        assert cli("destroy", "--all", **there).stdout == b"destroyed mine\n"
        left = document(cli("list", "--json", **there))
        assert [info["spec"]["ephemeral"] for info in left] == [True]
        session.stdin.close()
        assert session.wait(60) == 0
    assert document(cli("list", "--json", **there)) == []


def test_logs_are_followed_to_the_end(cli: Cli, environment: dict[str, str]) -> None:
    cli("create", "logged")
    with subprocess.Popen(
        [*GHOST, "logs", "-f", "logged"], stdout=subprocess.PIPE, env=environment
    ) as following:
        assert following.stdout is not None
        cli("exec", "logged", "--", "echo", "a-line")
        while b"echo a-line" not in following.stdout.readline():
            assert following.poll() is None
        cli("destroy", "logged")
        assert following.wait(60) == 0


def test_a_cave_ends_at_its_deadline(cli: Cli) -> None:
    cli("create", "short", "--timeout", "0.5s")
    deadline = time.monotonic() + 60
    while known(cli)["short"]["state"] != "ended":
        assert time.monotonic() < deadline
    assert b"is ended" in cli("exec", "short", "1", code=5).stderr
    cli("destroy", "short")


def test_a_cave_that_is_not_found_may_be_another_engines(cli: Cli, named: str) -> None:
    for words, told in (((), True), (("--backend", "local"), False)):
        said = cli("info", "nosuchcave", *words, code=4, GHOST_BACKEND="").stderr.decode()
        assert f"Caves here: {named}" in said
        assert ("Only local caves were looked for" in said) == told


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["create", "Not A Name"], 2, "not a cave name"),
        (["create", ""], 2, "not a cave name"),
        (["create", "{cave}"], 5, "already there"),
        (["create", "x", "--memory", "lots"], 2, "not a size: 'lots'"),
        (["create", "x", "--memory", "1"], 2, "memory_bytes must be"),
        (["create", "x", "--cpu", "two"], 2, "--cpu: not a number: 'two'"),
        (["create", "x", "--timeout", "soon"], 2, "not a time span"),
        (["create", "x", "--label", "bare"], 2, "not KEY=VALUE"),
        (["create", "x", "--network", "some"], 2, "'some' is none of: none, allow, open"),
        (["create", "x", "--allow", "https://a.example/"], 2, "not a network rule"),
        (["create", "x", "--network", "none", "--allow", "a.example"], 2, "need the network mode"),
        (["allow", "{cave}", "a.example"], 5, "has no network"),
        (["allow", "nosuchcave", "a.example"], 4, "no such cave"),
        (["egress", "nosuchcave"], 4, "no such cave"),
        (["create", "x", "--secret", "UNSET_SECRET"], 2, "no value for the secret UNSET_SECRET"),
        (["create", "x", "--workspace", "/nowhere/at/all"], 2, "no such workspace"),
        (["create", "x", "--image", "/nowhere/at/all"], 2, "not a root tree"),
        (["create", "x", "--backend", "nosuch"], 2, "unknown backend: nosuch"),
        (["info", "nosuchcave"], 4, "no such cave"),
        (["start", "nosuchcave"], 4, "no such cave"),
        (["stop", "nosuchcave"], 4, "no such cave"),
        (["logs", "nosuchcave"], 4, "no such cave"),
        (["destroy"], 2, "say which caves"),
        (["destroy", "x", "--all"], 2, "say which caves"),
        (["nosuchcommand"], 2, "unknown command"),
        (["list", "extra"], 2, "not understood: extra"),
    ],
)
def test_refusals(cli: Cli, named: str, words: list[str], code: int, said: str) -> None:
    words = [word.replace("{cave}", named) for word in words]
    done = cli(*words, code=code)
    assert done.stderr.startswith(b"ghost: ")
    assert said in done.stderr.decode()
    assert done.stdout == b""
    told = document(cli(*words, "--json", code=code))["error"]
    assert said in told["message"]
    assert set(told) >= {"code", "message", "hint", "retryable"}
    assert "x" not in known(cli)

"""``ghost secret``: values come in through stdin or a prompt, and are never shown again."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from ghost_mcp.secrets.store import SecretStore
from tests.cli.conftest import GHOST, Cli, document


@pytest.fixture
def store(state_dir: Path) -> SecretStore:
    return SecretStore(state_dir / "secrets")


def test_from_stdin_byte_for_byte(cli: Cli, store: SecretStore) -> None:
    value = b" two\nlines\0 and 'quotes\"\r\n"
    told = document(cli("secret", "set", "RAW", "--json", given=value))
    assert (told["name"], told["owner"]) == ("RAW", "")
    large = os.urandom(1 << 20)
    assert b"set LARGE, version" in cli("secret", "set", "LARGE", given=large).stdout
    assert store.get("", ["RAW", "LARGE"]) == {"RAW": value, "LARGE": large}
    listed = cli("secret", "list")
    names = {row["name"]: row for row in document(cli("secret", "list", "--json"))}
    assert set(names["RAW"]) == {"owner", "name", "version", "created_at", "updated_at"}
    assert b"RAW" in listed.stdout
    assert b"two" not in listed.stdout
    assert cli("secret", "rm", "RAW", "LARGE").stdout == b"removed RAW\nremoved LARGE\n"
    cli("secret", "rm", "RAW", code=4)
    assert store.get("", ["RAW", "LARGE"]) == {}


def test_an_owners_are_its_own(cli: Cli, store: SecretStore) -> None:
    cli("secret", "set", "THEIRS", "--owner", "ada", given=b"value")
    assert [row["name"] for row in document(cli("secret", "list", "--owner", "ada", "--json"))] == [
        "THEIRS"
    ]
    assert "THEIRS" not in cli("secret", "list").stdout.decode()
    cli("secret", "rm", "THEIRS", code=4)
    cli("secret", "rotate")
    assert store.get("ada", ["THEIRS"]) == {"THEIRS": b"value"}
    cli("secret", "rm", "THEIRS", "--owner", "ada")


def test_a_value_on_the_command_line_is_refused_and_not_repeated(cli: Cli) -> None:
    for words in (("NAME", "v4lue"), ("NAME=v4lue",), ("NAME", "a", "v4lue")):
        done = cli("secret", "set", *words, code=2)
        assert b"v4lue" not in done.stdout + done.stderr.replace(b"'NAME=v4lue'", b"")
    cli("secret", "set", "EMPTY", code=2)


def test_from_a_terminal_without_an_echo(environment: dict[str, str], store: SecretStore) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", *GHOST, "secret", "set", "TYPED"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        shown = b""
        while b"Value of TYPED" not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, b"typed value\n")
        try:
            while piece := os.read(ours, 1000):
                shown += piece
        except OSError:
            pass
        assert process.wait(60) == 0
    os.close(ours)
    assert b"set TYPED" in shown
    assert b"typed value" not in shown
    assert store.get("", ["TYPED"]) == {"TYPED": b"typed value"}


def test_a_cave_gets_what_was_set_else_a_variable_of_ours(cli: Cli) -> None:
    cli("secret", "set", "BOTH", given=b"stored-value-1234")
    done = cli("create", "no-value", "--secret", "NOT_SET", code=2)
    assert b"ghost secret set NOT_SET" in done.stderr
    cli("create", "own", "--secret", "GHOST_STATE_DIR", code=2)
    cli(
        "create",
        "two",
        "--secret",
        "BOTH",
        "--secret",
        "OURS",
        BOTH="not this",
        OURS="variable-value-1",
    )
    try:
        for name, value in (("BOTH", "stored-value-1234"), ("OURS", "variable-value-1")):
            test = f'[ "${name}" = "$(printf %s {value[:7]}; printf %s {value[7:]})" ]'
            cli("exec", "two", "--", "sh", "-c", test)
    finally:
        cli("destroy", "two")

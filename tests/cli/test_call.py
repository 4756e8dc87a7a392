"""``ghost call``: a tool as an agent would use it, without an agent."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from .conftest import Cli, document

if TYPE_CHECKING:
    from pathlib import Path


def test_a_tool_of_each_plain_server(cli: Cli, named: str) -> None:
    said = cli("call", "file_write", "path=n.csv", "content=a,b\n1,2\n", "--cave", named).stdout
    assert said.startswith(b"created /workspace/n.csv")
    assert b"1,2" in cli("call", "file_read", "path=n.csv", f"cave={named}").stdout
    assert b"exit code 3" in cli("call", "shell_exec", "command=exit 3", "--cave", named).stdout
    converted = cli("call", "markitdown_convert", "path=n.csv", "--cave", named).stdout
    assert b"| a | b |" in converted


def test_without_a_cave_one_is_made_for_the_call(cli: Cli) -> None:
    before = document(cli("list", "--json"))
    told = document(cli("call", "shell_exec", "command=pwd", "--json"))
    assert told["data"]["exit_code"] == 0
    assert told["data"]["stdout"] == "/workspace\n"
    assert document(cli("list", "--json")) == before


def test_arguments_follow_the_schema(cli: Cli, named: str) -> None:
    cli(
        "call", "file_write", "path=5", "content=12345", "--cave", named
    )  # text, though it looks like a number
    told = document(cli("call", "file_read", "path=5", "numbers=true", "--cave", named, "--json"))
    assert told["data"]["content"] == "     1\t12345"
    argv = 'command:=["printf", "%s", "a b"]'
    told = document(cli("call", "shell_exec", argv, "timeout_s=5.5", "--cave", named, "--json"))
    assert told["data"]["stdout"] == "a b"


def test_large_output_has_a_handle(cli: Cli, named: str) -> None:
    told = document(cli("call", "shell_exec", "command=seq 100000", "--cave", named, "--json"))
    assert len(told["text"]) <= 8000
    (handle,) = told["handles"]
    assert handle["size_bytes"] == 588895
    end = ("call", "file_read", f"path={handle['uri']}", "offset=588888", "--cave", named)
    assert document(cli(*end, "--json"))["data"]["content"] == "100000\n"


def test_pictures(cli: Cli, named: str, tmp_path: Path) -> None:
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    write = ("call", "file_write", "path=p.png", f"content={png}", "encoding=base64")
    cli(*write, "--cave", named)
    read = ("call", "file_read", "path=p.png", "--cave", named)
    assert b"--save DIR keeps it" in cli(*read).stderr
    told = document(cli(*read, "--json"))["pictures"]
    assert told == [{"mime_type": "image/png", "size_bytes": 70, "data_base64": png}]
    folder = tmp_path / "pictures"
    path = cli(*read, "--save", str(folder)).stdout.decode().splitlines()[-1]
    assert path == str(folder / "file_read-1.png")
    assert (folder / "file_read-1.png").read_bytes() == base64.b64decode(png)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nosuch"], 4, "no such tool: nosuch"),
        (["nosuch_read"], 4, "no such tool: nosuch_read"),
        (["file_nosuch"], 4, "no such tool: file_nosuch"),
        (["file_read", "path"], 2, "not KEY=VALUE: 'path'"),
        (["file_read", "=x"], 2, "not KEY=VALUE"),
        (["file_read", "path:=["], 2, "path: not JSON"),
        (["file_read"], 2, "path: required"),
        (["file_read", "path=x", "nosuch=1"], 2, "unknown argument 'nosuch'"),
        (["file_read", "path=x", "limit=many"], 2, "limit"),
        (["file_read", "path=/nowhere"], 4, "/nowhere"),
        (["file_read", "path=x", "--cave", "nosuchcave"], 4, "no cave named"),
        (["file_read", "path=x", "cave=nosuchcave"], 4, "no cave named"),
    ],
)
def test_refusals(cli: Cli, words: list[str], code: int, said: str) -> None:
    done = cli("call", *words, code=code)
    assert said in done.stderr.decode()
    assert done.stdout == b""
    assert said in document(cli("call", *words, "--json", code=code))["error"]["message"]

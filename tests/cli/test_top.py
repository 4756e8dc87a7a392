"""``ghost top``: what caves use beside what they may, once and live, wide and narrow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ghost_mcp.cli.top import HEADERS, fitted

from .conftest import GHOST, Cli, document
from .test_terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def caves(cli: Cli) -> Iterator[None]:
    cli("create", "top-a", "--cpu", "0.5", "--memory", "256m", "--pids", "64")
    yield
    cli("destroy", "--all")


def test_nothing_runs(cli: Cli) -> None:
    done = cli("top")
    assert (done.stdout, b"no cave runs" in done.stderr) == (b"", True)
    assert document(cli("top", "--json")) == []
    cli("top", "--interval", "0", code=2)
    cli("top", "nobody", code=4)


def test_use_stands_beside_the_limits(cli: Cli, caves: None) -> None:
    head, line = cli("top").stdout.decode().splitlines()
    assert head.split("  ")[0] == "NAME"
    name, cpu, memory, pids, *_ = line.split()
    assert (name, pids.partition("/")[2]) == ("top-a", "64")
    assert cpu.endswith("/0.5")
    assert memory.endswith("/256.0M")


def test_the_same_as_one_document(cli: Cli, caves: None) -> None:
    (row,) = document(cli("top", "top-a", "--json"))
    assert (row["name"], row["backend"], row["limits"]["pids"]) == ("top-a", "local", 64)
    assert row["memory_bytes"] > 0
    assert row["cpus"] >= 0
    assert (row["sent_bytes"], row["received_bytes"]) == (0, 0)


def test_live_in_a_narrow_terminal(caves: None, environment: dict[str, str]) -> None:
    with Terminal([*GHOST, "top", "--interval", "0.2"], environment) as terminal:
        terminal.resize(10, 40)
        terminal.until("NAME")
        terminal.until("NAME")  # again
        screen = terminal.until("top-a")
        assert "BACKEND" not in screen
        terminal.type("\x03")
        terminal.until("\x1b[?25h\x1b[?1049l")  # the cursor and what was there before
        assert terminal.process.wait(60) == 130


@pytest.mark.parametrize("wide", [10, 24, 33, 40, 60, 80, 200])
def test_no_line_is_longer_than_the_terminal(wide: int) -> None:
    row = ("n" * 48, "12.00/16", "1023.9M/2.0G", "1000/1024", "-", "1.0G/200.3M", "kubernetes")
    lines = fitted([row, row], wide)
    assert max(map(len, lines)) <= wide
    assert lines[0].startswith("NAME")
    if wide >= 200:
        assert all(cell in lines[1] for cell in row)
        assert all(word in lines[0] for word in HEADERS)

"""What lies on the host of a cave's network: grants and the record of connections."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from ghost_mcp.egress import ledger as ledgers
from ghost_mcp.egress.ledger import Ledger
from ghost_mcp.errors import InvalidArgument


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "egress"


def test_nothing_is_there_before_the_first_word(folder: Path) -> None:
    ledger = Ledger(folder)
    assert ledger.grants() == ()
    assert ledger.records() == []
    ledger.write(event="open", id="1")
    assert not folder.exists()  # the last word of a connection may come after the cave's end


def test_grants_are_seen_by_all_and_end(folder: Path) -> None:
    one, two = Ledger(folder), Ledger(folder)
    one.grant("a.example")
    assert [grant.rule for grant in two.grants()] == ["a.example"]
    two.grant("b.example", for_s=60)
    two.grant("c.example", for_s=0.01)
    time.sleep(0.02)
    assert {grant.rule for grant in one.grants()} == {"a.example", "b.example"}
    one.grant("b.example")
    assert all(grant.until is None for grant in two.grants())
    with pytest.raises(InvalidArgument):
        one.grant("no rule at all")
    assert len(two.grants()) == 2
    assert folder.stat().st_mode & 0o077 == 0


def _grant_many(folder: Path, name: str) -> None:
    for number in range(20):
        Ledger(folder).grant(f"{name}{number}.example")


def test_grants_given_at_once_are_all_kept(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_grant_many, args=(folder, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(Ledger(folder).grants()) == 40


def test_the_record_is_bounded_and_keeps_what_is_newest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "MAX_LOG_BYTES", 2000)
    ledger = Ledger(folder)
    ledger.prepare()
    for number in range(200):
        ledger.write(event="open", id=str(number))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5000
    kept = [int(record["id"]) for record in ledger.records()]
    assert kept == list(range(kept[0], 200))
    since = ledger.records()[-1]["at"]
    assert [record["id"] for record in ledger.records(since=since)] == ["199"]
    with (folder / "log.jsonl").open("ab") as file:
        file.write(b"half a line")
    assert len(ledger.records()) == len(kept)


@pytest.mark.parametrize("before", [0, 3])
async def test_following_misses_and_repeats_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr(ledgers, "MAX_LOG_BYTES", 4000)
    monkeypatch.setattr(ledgers, "POLL_S", 0.005)
    ledger, seen = Ledger(folder), []
    ledger.prepare()
    for number in range(before):
        ledger.write(id=number)

    async def write() -> None:
        for number in range(before, 300):
            Ledger(folder).write(id=number)
            await anyio.sleep(0.001)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            async for record in ledger.follow():
                seen.append(record["id"])
                if len(seen) == 300:
                    break
    assert seen == list(range(300))


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cave can fill the log at will, and after each call of a tool the last moment of it is asked for."""
    ledger = Ledger(tmp_path)
    now = [1000.0]
    monkeypatch.setattr("ghost_mcp.egress.ledger.time.time", lambda: now[0])
    for _ in range(2_000):
        ledger.write(event="refused")
    now[0] = 2000.0
    for target in ("a", "b"):
        ledger.write(event="refused", target=target)
    read = 0

    def counted(line: bytes) -> Any:
        nonlocal read
        read += 1
        return json.JSONDecoder().decode(line.decode())

    monkeypatch.setattr("ghost_mcp.egress.ledger.json.loads", counted)
    assert [one["target"] for one in ledger.records(since=1999.0)] == ["a", "b"]
    assert read < 10

# The table says what ran, where, and what did not and why. Nobody writes into it by hand.
"""A pytest plugin: keeps RESULTS.md, one line for each id of a security test and backend.

``pytest -p tests.security.results`` runs the tests whose names begin with ids (``test_s2_s3_...``) and renews the
lines of those that ran; with ``--collect-only`` it only adds the lines that are missing and drops those that no test
has. The backend is the one that the module, the test or its parameters name, else ``local``, where what does not depend
on a backend stands too. A test adds a figure with ``record_property("figure", TEXT)``.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

__all__ = ["IDS", "LONG", "NONE", "TABLE", "Line", "keys_of", "parse"]

#: Whether tests run in their long forms: ``make test-long``.
LONG = bool(os.environ.get("GHOST_TEST_LONG"))

TABLE = Path(__file__).with_name("RESULTS.md")
GROUPS = {"S": 5, "D": 4, "I": 7, "B": 4, "T": 6, "P": 4, "L": 6, "F": 6, "R": 6}
IDS = tuple(f"{group}{number}" for group, most in GROUPS.items() for number in range(1, most + 1))
BACKENDS = ("local", "docker", "compose", "kubernetes")
_NAME = re.compile(r"test_((?:[a-z][0-9]_)+)")
NONE = "not run: no test of this id"
_UNRUN = "not run: added since the last run"
_HEAD = """\
# What is tried on the walls, and how it ended

Written by `make security-results`; the ids are explained at the tests that bear them in their names. What does not
depend on a backend stands under `local`. A line says how many tests there were and how long they took, in seconds;
after no failure in N attempts, the true rate is below 3/N with 95 % certainty.

| id | backend | outcome | tests | s | run on | figure |
|---|---|---|--:|--:|---|---|
"""
Key = tuple[str, str]


@dataclass(slots=True, kw_only=True)
class Line:
    """One line of the table."""

    outcome: str
    tests: int = 0
    seconds: float = 0
    run_on: str = ""
    figure: str = ""

    def render(self, key: Key) -> str:
        cells = (*key, self.outcome, self.tests, f"{self.seconds:.0f}", self.run_on, self.figure)
        return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |\n"


def keys_of(node_id: str) -> set[Key]:
    """The ids and the backend of a test; none when its name begins with no id."""
    path, _, name = node_id.partition("::")
    found = _NAME.match(name.rpartition("::")[2])
    if found is None:
        return set()
    words = set(re.split(r"[^a-z]+", f"{Path(path).stem} {name}".lower()))
    backend = next((one for one in BACKENDS[1:] if one in words), BACKENDS[0])
    return {(one.upper(), backend) for one in found[1].split("_") if one.upper() in IDS}


def parse(text: str) -> dict[Key, Line]:
    """The lines of the table."""
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()]
    return {
        (row[0], row[1]): Line(
            outcome=row[2],
            tests=int(row[3]),
            seconds=float(row[4]),
            run_on=row[5],
            figure=row[6],
        )
        for row in rows
        if len(row) == 7 and row[0] in IDS
    }


def _order(key: Key) -> tuple[int, int]:
    return IDS.index(key[0]), BACKENDS.index(key[1])


@dataclass(slots=True)
class _Ran:
    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0
    figures: list[str] = field(default_factory=list)

    def line(self) -> Line:
        reasons = "; ".join(sorted(set(self.skipped.values())))
        passed = self.passed - self.failed - set(self.skipped)
        outcome = "passed" if passed else f"not run: {reasons}"
        if self.failed:
            outcome = f"FAILED: {', '.join(sorted(self.failed))}"
        elif passed and reasons:
            outcome += f"; {len(self.skipped)} not run: {reasons}"
        figures = [*(["long form"] if LONG else []), *self.figures]
        return Line(
            outcome=outcome,
            tests=len(passed | self.failed | set(self.skipped)),
            seconds=self.seconds,
            run_on=time.strftime("%Y-%m-%d", time.gmtime()),
            figure="; ".join(figures),
        )


class _Results:
    def __init__(self) -> None:
        self._there: set[Key] = set()
        self._ran: dict[Key, _Ran] = defaultdict(_Ran)

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        kept = [item for item in items if keys_of(item.nodeid)]
        self._there = {key for item in kept for key in keys_of(item.nodeid)}
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        for key in keys_of(report.nodeid):
            ran = self._ran[key]
            ran.seconds += report.duration
            if report.failed:
                ran.failed.add(name)
            elif report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
                ran.skipped[name] = re.sub(r"^(Skipped: )?(not run: )?", "", reason)[:120]
            elif report.when == "call":
                ran.passed.add(name)
                ran.figures += [
                    str(text) for what, text in report.user_properties if what == "figure"
                ]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        lines = parse(TABLE.read_text()) if TABLE.exists() else {}
        if session.config.option.collectonly:
            there = self._there
            lines = {k: line for k, line in lines.items() if k in there and line.outcome != NONE}
            lines |= {key: Line(outcome=_UNRUN) for key in self._there - set(lines)}
        lines |= {key: ran.line() for key, ran in self._ran.items()}
        tried = {key[0] for key in lines if lines[key].outcome != NONE}
        lines = {key: line for key, line in lines.items() if key[0] in tried}
        lines |= {(one, BACKENDS[0]): Line(outcome=NONE) for one in IDS if one not in tried}
        rows = [lines[key].render(key) for key in sorted(lines, key=_order)]
        TABLE.write_text(_HEAD + "".join(rows))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Results(), "security results")

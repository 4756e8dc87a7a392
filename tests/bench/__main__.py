# A number never fails a run: only a measurement that could not be carried out does.
"""``python -m tests.bench [NAME ...] [--quick] [--stretch] [--json]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping

import anyio

from tests.bench import (
    caves,
    crowd,
    docker,
    egress,
    http,
    kernels,
    kubernetes,
    people,
    place,
    programs,
    sealed,
    serving,
    table,
    tools,
)
from tests.bench.measure import Row
from tests.bench.place import Place

Measurement = Callable[[Place], Awaitable[list[Row]]]

MEASUREMENTS: Mapping[str, Measurement] = {
    "create": caves.create,
    "pool": caves.pool,
    "exec": caves.exec_,
    "read": caves.read,
    "stdio-read": serving.stdio_read,
    "output": tools.output,
    "no-op": serving.no_op,
    "masking": sealed.masking,
    "sealing": sealed.sealing,
    "screenshot": tools.screenshot,
    "convert": tools.convert,
    "egress": egress.throughput,
    "egress-latency": egress.latency,
    "memory": crowd.memory,
    "live": crowd.live,
    "version": programs.version,
    "ghost-exec": programs.exec_,
    "doctor": programs.doctor,
    "ready": serving.ready,
    "http-mcp": http.mcp,
    "http-rest": http.rest,
    "http-throughput": http.throughput,
    "http-download": http.download,
    "http-idle": http.idle,
    "terminal": people.terminal,
    "preview": people.preview,
    "kernels": kernels.warm,
    "docker": docker.made,
    "docker-use": docker.used,
    "docker-crowd": docker.crowd,
    "kubernetes": kubernetes.made,
    "kubernetes-use": kubernetes.used,
}
MEASUREMENT_S = 240


def main() -> int:
    """0, or 1 when a measurement broke."""
    options = _options()
    before, started = table.machine(), time.monotonic()
    rows: list[Row] = []
    broken: dict[str, str] = {}
    with place.opened(quick=options.quick, stretch=options.stretch) as here:
        for name in options.names or MEASUREMENTS:
            _progress(f"{name} ...")
            try:
                rows += anyio.run(_bounded, MEASUREMENTS[name], here)
                here.check_empty()
            except Exception as exc:  # noqa: BLE001  (the others are measured all the same)
                broken[name] = f"{type(exc).__name__}: {exc}"
                _progress("")
                traceback.print_exc()
    _progress("")
    after = [round(load, 2) for load in os.getloadavg()]
    if options.json:
        document = {
            "machine": {**before, "load_after": after},
            "seconds": round(time.monotonic() - started, 1),
            "rows": [row.as_dict() for row in rows],
            "broken": broken,
        }
        print(json.dumps(document, indent=2))
    else:
        print(table.render(rows, before, after))
        print(f"\n{len(rows)} rows in {time.monotonic() - started:.0f} s")
        for name, why in broken.items():
            print(f"BROKEN {name}: {why}")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="a fifth of the runs")
    parser.add_argument("--stretch", action="store_true", help="200 live caves too")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in MEASUREMENTS]:
        parser.error(f"no such measurement: {unknown[0]} (there are {', '.join(MEASUREMENTS)})")
    return options


async def _bounded(measurement: Measurement, here: Place) -> list[Row]:
    with anyio.fail_after(MEASUREMENT_S):
        return await measurement(here)


def _progress(text: str) -> None:
    """One line that overwrites itself, for a person who waits."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

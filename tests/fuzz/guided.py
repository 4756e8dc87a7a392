# atheris is no dependency of ours: see scripts/fuzz.
"""``python -m tests.fuzz.guided TARGET SECONDS``: one target, guided by what it covers; its corpus is kept."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["ghost_mcp", "h11", "idna"]):
    from tests.fuzz.targets import CORPUS, TARGETS


def main() -> None:
    name, seconds = sys.argv[1:]
    kept = Path(".cache/fuzz", name)
    kept.mkdir(parents=True, exist_ok=True)
    bounds = ["-max_len=2048", "-timeout=30", "-rss_limit_mb=2048", f"-max_total_time={seconds}"]
    # New inputs go into the first folder; what fails is written beside it, to be added to the corpus here.
    words = [*bounds, f"-artifact_prefix={kept}.", str(kept), str(CORPUS / name)]
    atheris.Setup([sys.argv[0], *words], TARGETS[name])
    atheris.Fuzz()


main()

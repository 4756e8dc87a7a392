# Makes dist/ghost-VERSION.mcpb: what a client with one-click installation takes. The same tree gives the same bytes.
"""The MCPB bundle: Ghost's sources and a manifest (format: modelcontextprotocol/mcpb, MANIFEST.md, version 0.4)."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghost_hub.catalog import published, toolsets
from ghost_mcp import __version__

__all__ = ["build", "manifest"]

ROOT = Path(__file__).parents[2]
SOURCES = ("ghost_mcp", "servers/ghost_servers", "hub/ghost_hub")
FILES = ("pyproject.toml", "README.md", "LICENSE")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def manifest() -> dict[str, Any]:
    """What the client shows and starts. The client's own uv brings Python and the dependencies."""
    server = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
    tools = published(toolsets())
    start = ["run", "--directory", "${__dirname}", "--no-dev", "ghost", "mcp"]
    return {
        "manifest_version": "0.4",
        "name": "ghost",
        "display_name": server["title"],
        "version": __version__,
        "description": server["description"],
        "author": {"name": "The Ghost authors"},
        "license": "Apache-2.0",
        "server": {
            "type": "uv",
            "entry_point": "ghost_mcp/cli/__main__.py",
            "mcp_config": {"command": "uv", "args": start},
        },
        "tools": [{"name": name, "description": tool.title} for name, tool in tools.items()],
        "compatibility": {"platforms": ["linux"], "runtimes": {"python": ">=3.11"}},
    }


def build(folder: Path) -> Path:
    """Write the bundle into a folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"ghost-{__version__}.mcpb"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        _add(bundle, "manifest.json", json.dumps(manifest(), indent=2).encode())
        for source in sorted(_sources()):
            _add(bundle, source.relative_to(ROOT).as_posix(), source.read_bytes())
    return path


def _sources() -> Iterator[Path]:
    yield from (ROOT / name for name in FILES)
    for name in SOURCES:
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def _add(bundle: zipfile.ZipFile, name: str, data: bytes) -> None:
    """With a date and permissions of its own, not those of the checkout."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    bundle.writestr(info, data)


if __name__ == "__main__":
    sys.stdout.write(f"{build(ROOT / 'dist').relative_to(ROOT)}\n")

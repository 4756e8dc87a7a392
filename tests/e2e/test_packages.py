"""``server.json`` and the MCPB bundle: valid by their formats' own rules, and what they start is Ghost."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ghost_hub.catalog import published, toolsets
from ghost_mcp import __version__

ROOT = Path(__file__).parents[2]
NODE = ROOT / ".cache/npm/bin/node"
MCPB = ROOT / ".cache/npm/node_modules/@anthropic-ai/mcpb/dist/cli/cli.js"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = _maker().build(tmp_path_factory.mktemp("bundle"))
    return path


def _maker() -> Any:
    spec = importlib.util.spec_from_file_location("bundle", ROOT / "configs/clients/bundle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_registry_entry() -> None:
    """The rules of the schema of 2025-12-11 that this entry comes under, and the registry's own for PyPI."""
    entry = json.loads((ROOT / "server.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert entry["$schema"].endswith("/schemas/2025-12-11/server.schema.json")
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", entry["name"])
    assert 1 <= len(entry["description"]) <= 100
    assert 1 <= len(entry["title"]) <= 100
    assert set(entry) == {"$schema", "name", "title", "description", "version", "packages"}
    [package] = entry["packages"]
    assert entry["version"] == package["version"] == __version__
    assert (package["registryType"], package["identifier"]) == ("pypi", project["name"])
    assert package["transport"] == {"type": "stdio"}
    assert package["identifier"] in project["scripts"]  # what uvx starts has the package's name
    assert [argument["value"] for argument in package["packageArguments"]] == ["mcp"]
    assert all(argument["type"] == "positional" for argument in package["packageArguments"])
    for variable in package["environmentVariables"]:
        assert set(variable) <= {"name", "description", "format"}
        assert variable.get("format", "string") in ("string", "number", "boolean", "filepath")
    # By this line the registry knows that whoever publishes the package also speaks for the name.
    assert f"mcp-name: {entry['name']}" in (ROOT / "README.md").read_text()


def test_the_same_tree_gives_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    assert _maker().build(tmp_path).read_bytes() == bundle.read_bytes()
    assert bundle.stat().st_size < 4 << 20


def test_what_the_bundle_starts_is_ghost(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as opened:
        opened.extractall(tmp_path)
        names = opened.namelist()
    assert not any("__pycache__" in name or name.startswith("tests") for name in names)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [tool["name"] for tool in manifest["tools"]] == list(published(toolsets()))
    *_, command, word = manifest["server"]["mcp_config"]["args"]
    assert command in tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["scripts"]
    assert word == "mcp"
    paths = ":".join(str(tmp_path / name) for name in (".", "servers", "hub"))
    done = subprocess.run(
        [sys.executable, str(tmp_path / manifest["server"]["entry_point"]), "version"],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"ghost {__version__}\n", "")


@pytest.mark.npm
@pytest.mark.skipif(
    not (NODE.exists() and MCPB.exists()),
    reason="not run: the npm packages are not installed (scripts/setup --test)",
)
def test_the_format_s_own_tool_takes_it(bundle: Path, tmp_path: Path) -> None:
    def mcpb(*words: str) -> str:
        done = subprocess.run(
            [str(NODE), str(MCPB), *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    mcpb("unpack", str(bundle), str(tmp_path / "unpacked"))
    said = mcpb("validate", str(tmp_path / "unpacked" / "manifest.json"))
    assert "Manifest schema validation passes!" in said
    broken = tmp_path / "manifest.json"
    broken.write_text(json.dumps(_maker().manifest() | {"server": {"type": "uv"}}))
    with pytest.raises(AssertionError, match=r"server\.entry_point"):
        mcpb("validate", str(broken))

"""The converter works wherever Python and its packages are installed, also below what a cave hides or links."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.tool import Call, invoke
from ghost_servers.markitdown import TOOLSET
from ghost_servers.markitdown.installed import TOP, installed

CONVERT = next(tool for tool in TOOLSET.tools if tool.name == "convert")


@pytest.fixture(params=["/tmp", "/var/tmp"])
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that no other user may enter, where a cave has its own /tmp, or a link."""
    with tempfile.TemporaryDirectory(dir=request.param, prefix="ghost, with spaces ") as folder:
        yield Path(folder)


def moved_python(home: Path) -> Path:
    """This Python at another place, by a link to its library, which caves have."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (home / "bin").mkdir(parents=True)
    (home / "lib").mkdir()
    (home / "lib" / name).symlink_to(os.path.realpath(sysconfig.get_path("stdlib")))
    return Path(shutil.copy(os.path.realpath(sys.executable), home / "bin" / name))


async def test_a_document_is_converted_by_what_lies_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    packages = place / "venv/lib/site-packages"
    found = importlib.util.find_spec("markitdown")
    assert found is not None
    assert found.origin is not None
    shutil.copytree(Path(found.origin).parent, packages / "markitdown")
    monkeypatch.setattr(sys, "path", [str(packages), *sys.path])
    # Else it is moved anyhow.
    if os.path.realpath(sysconfig.get_path("stdlib")).startswith("/usr/"):
        monkeypatch.setattr(sys, "_base_executable", str(moved_python(place / "python")))
    here = installed()
    assert here.python.startswith(f"{TOP}/python/bin/python")
    assert here.mounts[here.packages[0]] == str(packages)
    assert not [path for path in here.mounts if not path.startswith(f"{TOP}/")]
    async with (
        Ghost(backend="local", state_dir=state_dir) as ghost,
        await ghost.create(CaveSpec(ephemeral=True)) as cave,
    ):
        await cave.write("a.csv", "a,b\n1,2\n")
        reply = await invoke(CONVERT, Call(cave=cave), {"path": "a.csv"})
        assert "| 1 | 2 |" in reply.data["markdown"]
        (other,) = [one for one in await ghost.list() if one.id != cave.id]
        converter = await ghost.get(other.id)
        seen = await converter.exec(
            [here.python, "-I", "-S", "-B", "-c", "import sys; print(sys.prefix)"]
        )
        assert seen.stdout.strip() == f"{TOP}/python"
        seen = await converter.exec(["ls", here.packages[0]])
        assert seen.stdout.split() == ["markitdown"]

# Only this file says which of this machine's files a converter cave gets to see, and where it sees them.
"""The interpreter that runs here and the packages it knows, each at a path of ours in the converter cave.

At their own paths they would get in each other's way there: a cave has a /tmp, a /home and a /workspace of its own,
its /var/tmp is a link, and an installation may lie below any of them. What is below /usr every cave has anyhow.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ghost_mcp.errors import BackendUnavailable

__all__ = ["Installed", "installed"]

TOP = "/opt/ghost"
_START = (
    "import sys; sys.path[:] = [sys.argv[2], *sys.path, *sys.argv[3:]]; "
    "from converter.zygote import main; main(sys.argv[1])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What a converter cave is made with: ``mounts`` as in a CaveSpec; ``python`` and ``packages`` are paths in it."""

    mounts: Mapping[str, str]
    python: str
    packages: tuple[str, ...]

    def argv(self, socket: str) -> list[str]:
        """The converter's command line. It finds packages by the folders given here, and in no others."""
        return [self.python, "-I", "-S", "-B", "-c", _START, socket, TOP, *self.packages]

    @property
    def environment(self) -> dict[str, str]:
        """Where a Python that was built with a library of its own finds it, when it was moved."""
        moved = self.python.startswith(f"{TOP}/")
        return {"LD_LIBRARY_PATH": f"{TOP}/python/lib"} if moved else {}


def installed() -> Installed:
    """What is installed here, in the Python that runs this. Raises BackendUnavailable without markitdown."""
    # Not the environment's own: that is a link, and its settings name the place of this one.
    program = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    home = os.path.dirname(os.path.dirname(program))
    mounts = {f"{TOP}/converter": str(Path(__file__).with_name("incave"))}

    def seen(path: str, name: str) -> str:
        if f"{path}/".startswith("/usr/"):
            return path
        mounts[f"{TOP}/{name}"] = path
        return f"{TOP}/{name}"

    python = f"{seen(home, 'python')}/{os.path.relpath(program, home)}"
    packages = [seen(path, f"packages{number}") for number, path in enumerate(_packages())]
    return Installed(mounts=mounts, python=python, packages=tuple(packages))


def _packages() -> list[str]:
    """Where this Python finds installed packages, and the folder that markitdown is installed in."""
    spec = importlib.util.find_spec("markitdown")
    if spec is None or not spec.origin:
        raise BackendUnavailable("markitdown is not installed", hint="pip install markitdown")
    listed = [path for path in sys.path if path.endswith(("/site-packages", "/dist-packages"))]
    found = (os.path.realpath(path) for path in (*listed, str(Path(spec.origin).parents[1])))
    return [path for path in dict.fromkeys(found) if os.path.isdir(path)]

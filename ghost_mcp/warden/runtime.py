"""(being replaced)"""

from __future__ import annotations
import shutil
from pathlib import Path


def build_runtime(cache_dir: Path) -> Path:
    target = cache_dir / "rt-dev"
    shutil.copytree(Path(__file__).parent, target / "warden", dirs_exist_ok=True)
    target.chmod(0o755)
    return target


def argv(root: str = "/.ghost") -> list[str]:
    return [
        "/usr/bin/python3",
        "-S",
        "-E",
        "-B",
        "-c",
        f"import sys; sys.path.insert(0, '{root}'); from warden.program import main; main()",
    ]


def environ(root: str) -> dict[str, str]:
    return {}

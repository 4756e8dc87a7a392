"""(being replaced)"""

from __future__ import annotations

import shutil
from pathlib import Path


def build_etc(cache_dir: Path) -> Path:
    target = cache_dir / "etc-dev"
    if not target.exists():
        target.mkdir(parents=True)
        for n in ("alternatives", "ssl/certs", "fonts", "chromium", "chromium.d"):
            if Path("/etc", n).exists():
                shutil.copytree(Path("/etc", n), target / n, symlinks=True)
        for n in ("ld.so.cache", "nsswitch.conf", "mime.types", "services", "protocols"):
            if Path("/etc", n).exists():
                shutil.copy(Path("/etc", n), target / n)
        (target / "passwd").write_text(
            "root:x:0:0::/root:/bin/sh\ncave:x:1000:1000::/home/cave:/bin/bash\n"
        )
        (target / "group").write_text("root:x:0:\ncave:x:1000:\n")
        (target / "hosts").write_text("127.0.0.1 localhost cave\n")
    return target

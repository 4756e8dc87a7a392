# Only this file decides what a cave sees of the host's configuration. What is not named here is not there.
"""A small /etc for caves that run on the host's own /usr.

Copies, never binds, of what programs of a distribution need to work: loader cache, certificates, fonts,
alternatives, names of services. Only what every user of the host may read is taken, no link is followed, and
nothing that looks like a private key passes. Who the cave's user is and where names resolve is written new.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["ENVIRONMENT", "assemble", "build_etc"]

VERSION = 1  # of the rules below: a change makes new copies
MAX_FILE_BYTES = 8 << 20
MANUALS = (".1.gz", ".5.gz", ".7.gz", ".8.gz")  # half of the alternatives
MACHINE_ID = "67686f7374000000000000000000cafe"  # the same in every cave, and no host's

# Files, links and whole folders below /etc; a last part may end with * for "whatever begins so".
TAKEN = tuple(
    """
    alternatives ld.so.cache ld.so.conf ld.so.conf.d ssl/certs ssl/cert.pem ssl/openssl.cnf
    ca-certificates.conf ca-certificates/extracted pki/ca-trust/extracted pki/tls/certs
    pki/tls/cert.pem crypto-policies fonts mime.types mailcap magic magic.mime localtime
    timezone locale.alias services protocols rpc ethertypes host.conf gai.conf shells inputrc
    terminfo os-release lsb-release debian_version redhat-release alpine-release issue python3
    python3.* perl R java-* chromium chromium.d libreoffice ImageMagick-* texmf ghostscript
    glvnd vulkan OpenCL X11/app-defaults gtk-3.0 nanorc vim
    """.split()  # noqa: SIM905 - names read best as words
)

# The system call filter refuses NETLINK, which Node takes for a broken machine: dev servers then do not start.
# A cave has its loopback and nothing else, so that is what they are told.
NODE_PRELOAD = """\
"use strict";
const os = require("os");
const mac = "00:00:00:00:00:00";
const loopback = () => ({
  lo: [
    { address: "127.0.0.1", netmask: "255.0.0.0", family: "IPv4", mac, internal: true, cidr: "127.0.0.1/8" },
    { address: "::1", netmask: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", family: "IPv6", mac, internal: true,
      cidr: "::1/128", scopeid: 0 },
  ],
});
const real = os.networkInterfaces;
os.networkInterfaces = () => {
  try {
    return real();
  } catch {
    return loopback();
  }
};
"""

WRITTEN = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\n"
    "cave:x:1000:1000:cave:/home/cave:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\ntty:x:5:\ncave:x:1000:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\nnetworks: files\n"
    "protocols: files\nservices: files\nethers: files\nrpc: files\n",
    "hosts": "127.0.0.1 localhost cave\n::1 localhost ip6-localhost ip6-loopback\n",
    "hostname": "cave\n",
    "resolv.conf": "",
    "machine-id": f"{MACHINE_ID}\n",
    "bash.bashrc": '[ -n "$PS1" ] || return\nshopt -s checkwinsize\nPS1="\\u@\\h:\\w\\\\$ "\n',
    "ghost/node.cjs": NODE_PRELOAD,
}

ENVIRONMENT = {"NODE_OPTIONS": "--require=/etc/ghost/node.cjs"}
"""Variables for the programs of a cave with this /etc."""


def build_etc(cache_dir: Path) -> Path:
    """The folder to bind at /etc, in ``cache_dir``; made again when the host's files have changed.

    Raises OSError when ``cache_dir`` cannot be written.
    """
    target = cache_dir / f"etc-{_key('/etc')}"
    if target.is_dir():
        return target
    import shutil
    import tempfile
    from pathlib import Path as MakePath

    temporary = tempfile.mkdtemp(prefix=".etc-", dir=cache_dir)
    try:
        assemble(MakePath(temporary), "/etc")
        os.sync()  # a name that survives a power failure must not name empty files
        os.rename(temporary, target)
    except OSError:
        if not target.is_dir():  # another process may have been faster: its folder is as good
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _key(source: str) -> str:
    """Changes with what is there to be taken. Packages replace files, which touches the folders they lie in."""
    import zlib

    marks = [
        f"{name}:{info.st_mtime_ns}:{info.st_size}:{info.st_mode}"
        for name, info in _present(source)
    ]
    data = repr((VERSION, TAKEN, WRITTEN, marks)).encode()
    return f"{zlib.crc32(data):08x}{zlib.adler32(data):08x}"


def _present(source: str) -> Iterator[tuple[str, os.stat_result]]:
    """What of TAKEN exists, patterns resolved."""
    entries = sorted(os.listdir(source))
    for pattern in TAKEN:
        prefix = pattern[:-1]
        matching = [e for e in entries if e.startswith(prefix)] if pattern[-1] == "*" else [pattern]
        for name in matching:
            with suppress(FileNotFoundError, NotADirectoryError):
                yield name, os.lstat(f"{source}/{name}")


def assemble(target: Path, source: str) -> None:
    """Fill an empty folder from a host's /etc."""
    for name, _ in _present(source):
        if _reachable(source, name):
            os.makedirs(os.path.dirname(f"{target}/{name}"), exist_ok=True)
            _take(f"{source}/{name}", f"{target}/{name}")
    for name, text in WRITTEN.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o755)  # noqa: S103 - a cave's own user reads it


def _reachable(source: str, name: str) -> bool:
    """Is every folder above ``name`` a real one that any user may enter?"""
    parts = name.split("/")[:-1]
    folders = ["/".join([source, *parts[: n + 1]]) for n in range(len(parts))]
    return all(_open_to_all(os.lstat(folder)) for folder in folders)


def _open_to_all(info: os.stat_result) -> bool:
    if stat.S_ISDIR(info.st_mode):
        return info.st_mode & 0o005 == 0o005
    return stat.S_ISREG(info.st_mode) and bool(info.st_mode & 0o004)


def _take(source: str, target: str) -> None:
    """Copy one entry and, for a folder, what is below it; leave out what is not for everyone."""
    info = os.lstat(source)
    if stat.S_ISLNK(info.st_mode):
        if not target.endswith(MANUALS):
            os.symlink(os.readlink(source), target)
    elif not _open_to_all(info):
        return
    elif stat.S_ISDIR(info.st_mode):
        os.mkdir(target)
        for name in sorted(os.listdir(source)):
            _take(f"{source}/{name}", f"{target}/{name}")
    else:
        _copy(source, target)


def _copy(source: str, target: str) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        info = os.fstat(fd)  # it may have been replaced since
        if not (stat.S_ISREG(info.st_mode) and _open_to_all(info)) or info.st_size > MAX_FILE_BYTES:
            return
        data = file.read(MAX_FILE_BYTES)
    if b"PRIVATE KEY--" in data:
        return
    with open(target, "wb") as file:
        file.write(data)
    os.chmod(target, (info.st_mode & 0o111) | 0o644)

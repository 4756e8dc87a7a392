# The warden never runs on what a cave's image happens to have: it brings loader, interpreter and library along.
"""Assembles the folder that every cave sees, read-only, at /.ghost.

::

    ld.so                  the ELF interpreter, executable but not readable
    python3                a copy of the interpreter
    lib/*.so               the shared objects it needs
    lib/python3.X/         byte code of the standard library's part below, of the warden, and lib-dynload/

Python finds ``lib/python3.X`` beside its own binary by itself. So no PYTHONHOME is set, which the cave's own
Pythons would inherit, and ``-I`` closes the warden to the image's PYTHON* variables and to the working
directory. It starts faster than a bare ``python3 -S``: the folders are short, and see ENCODINGS.

Run as a program, ``python3 runtime.py FOLDER``, by the interpreter that is to be copied (3.9 or later, glibc
or musl), this file needs nothing but the standard library: so an image is built with it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

__all__ = ["argv", "assemble", "build_runtime", "environ"]

OLDEST = (3, 9)
BUILD_S = 120
ROOM_BYTES = 32 << 20
NOT_IN_CAVES = frozenset({"link.py", "linkstream.py", "runtime.py"})

# What the warden imports, at its start or later, and what a part of it may: with all they import in turn.
MODULES = tuple(
    """
    _ctypes _json _posixsubprocess _socket array base64 bisect codecs collections contextlib
    copy ctypes dataclasses datetime difflib enum errno fcntl fnmatch functools getpass glob grp
    gzip hashlib heapq io itertools json keyword linecache locale math mimetypes mmap operator
    os pathlib posixpath pty pwd queue random re resource runpy secrets select selectors shlex
    shutil signal socket stat string struct subprocess tarfile tempfile termios textwrap
    threading time tokenize traceback tty types typing unicodedata urllib.parse warnings weakref
    zipfile zlib encodings.aliases encodings.ascii encodings.cp1252 encodings.cp437
    encodings.hex_codec encodings.idna encodings.latin_1 encodings.punycode
    encodings.raw_unicode_escape encodings.unicode_escape encodings.utf_16 encodings.utf_16_be
    encodings.utf_16_le encodings.utf_32 encodings.utf_8 encodings.utf_8_sig
    """.split()  # noqa: SIM905 - names read best as words
)
# Not in every build of Python.
OPTIONAL = (
    *("_bz2", "_lzma", "bz2", "lzma"),
    *("_blake2", "_md5", "_sha1", "_sha2", "_sha256", "_sha3", "_sha512"),
)
# OpenSSL's hashes: hashlib has its own, and these would bring 6 MB along.
UNWANTED = frozenset({"_hashlib", "_ssl"})

# The end of our encodings/__init__; its beginning is the source of encodings.utf_8. The original imports a table
# of 300 names, a tenth of the interpreter's start: here it is encodings.full and serves what is not UTF-8.
ENCODINGS = """
def original():
    import encodings.full
    return encodings.full

def search_function(name):
    return getregentry() if name in ("utf_8", "utf8") else original().search_function(name)

def __getattr__(name):
    if name == "full" or name.startswith("__"):
        raise AttributeError(name)
    return getattr(original(), name)

codecs.register(search_function)
"""


def argv(root: str = "/.ghost") -> list[str]:
    """The command line of the warden; its own arguments follow."""
    start = "from warden.program import main; main()"
    python = [f"{root}/ld.so", "--library-path", f"{root}/lib", f"{root}/python3"]
    return [*python, "-I", "-S", "-X", "utf8", "-c", start]


def environ(root: str = "/.ghost") -> dict[str, str]:
    """The variables that the command line needs: none."""
    return {}


def build_runtime(cache_dir: Path) -> Path:
    """The folder to bind at /.ghost, in ``cache_dir``; made once for each interpreter and version of the warden.

    The first call takes about a second. Raises BackendUnavailable when no interpreter here can be copied, OSError
    when the folder has no room for it.
    """
    candidates = _interpreters()
    for python in candidates:
        target = cache_dir / f"runtime-{_key(python)}"
        if target.is_dir():
            return target
    failures = []
    for python in candidates:
        target = cache_dir / f"runtime-{_key(python)}"
        failure = _build(python, target)
        if failure is None:
            return target
        failures.append(f"{python}: {failure}")
    _require_room(cache_dir)
    from ghost_mcp.errors import BackendUnavailable

    raise BackendUnavailable(
        f"cannot make the cave's runtime: {'; '.join(failures) or 'no Python 3.9 or later'}",
        hint="Install the distribution's Python with its standard library: apt-get install python3",
    )


def _require_room(folder: Path) -> None:
    import errno
    import shutil

    if shutil.disk_usage(folder).free < ROOM_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _interpreters() -> list[str]:
    """The distribution's Python, small and stripped, then the one we run on."""
    found = []
    for path in ("/usr/bin/python3", getattr(sys, "_base_executable", sys.executable)):
        real = os.path.realpath(path)
        if os.path.isfile(real) and real not in found:
            found.append(real)
    return found


_keys: dict[str, str] = {}


def _key(python: str) -> str:
    """Changes with the interpreter's binary and with the warden's sources, which one process reads once."""
    if python not in _keys:
        import hashlib

        info = os.stat(python)
        digest = hashlib.sha256(f"{python}:{info.st_mtime_ns}:{info.st_size}".encode())
        for source in [*warden_sources(), Path(__file__)]:
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
        _keys[python] = digest.hexdigest()[:16]
    return _keys[python]


def warden_sources() -> list[Path]:
    """The modules that run in a cave."""
    return sorted(p for p in Path(__file__).parent.glob("*.py") if p.name not in NOT_IN_CAVES)


def _build(python: str, target: Path) -> str | None:
    """Let ``python`` assemble itself beside the target, then move that into place; returns why it failed."""
    import shutil
    import subprocess
    import tempfile

    temporary = tempfile.mkdtemp(prefix=".runtime-", dir=target.parent)
    assembling = [python, "-I", "-S", __file__, temporary]
    trying = [*argv(temporary)[:-1], "import warden.program"]
    try:
        for command in (assembling, trying):
            done = subprocess.run(
                command,
                check=False,
                env={"PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=BUILD_S,
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                return lines[-1][:300]
        os.sync()  # a name that survives a power failure must not name empty files
        os.rename(temporary, target)
    except (OSError, subprocess.TimeoutExpired) as exc:
        # Another process may have been faster: then its folder is as good as ours.
        return None if target.is_dir() else str(exc)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return None


# --- run by the interpreter that is to be copied ------------------------------------------------------


def assemble(target: Path) -> None:
    """Fill the folder with this interpreter, its libraries, the modules it needs and the warden."""
    if sys.version_info < OLDEST:
        raise SystemExit("Python 3.9 or later is needed")
    home = os.path.dirname(os.__file__)
    library = target / sys.platlibdir / os.path.basename(home)
    (library / "lib-dynload").mkdir(parents=True)
    python = os.path.realpath("/proc/self/exe")
    loader = _loader(python)
    extensions = _standard_library(home, library)
    _copy(python, target / "python3")
    _copy(loader, target / "ld.so")
    # Whoever starts a program that he may not read gets a process that nobody may look into: the warden's memory
    # and environment are closed to the cave's other programs from its first instruction on.
    (target / "ld.so").chmod(0o111)
    (target / "lib").mkdir(exist_ok=True)
    for shared in _shared_objects(loader, [python, *extensions]):
        _copy(shared, target / "lib" / os.path.basename(shared))
    for source in warden_sources():
        _write_code(_warden_code(source), library / "warden" / f"{source.stem}.pyc")
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o755)  # noqa: S103 - a cave's own user reads it


def _standard_library(home: str, library: Path) -> list[str]:
    """Write the modules' byte code, copy the extensions; returns where the extensions were."""
    import importlib

    for name in MODULES + OPTIONAL:
        try:
            importlib.import_module(name)
        except ImportError:
            if name not in OPTIONAL:
                raise
    extensions = []
    for name, module in sorted(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        origin = getattr(spec, "origin", None) or ""
        if spec is None or spec.name != name or name in UNWANTED or not os.path.isabs(origin):
            continue  # built in, frozen, or an alias
        if origin.endswith(".so"):
            extensions.append(origin)
            _copy(origin, library / "lib-dynload" / os.path.basename(origin))
        elif origin.startswith(home):
            package = spec.submodule_search_locations is not None
            stem = "/".join(name.split(".")) + ("/__init__" if package else "")
            stem = "encodings/full" if name == "encodings" else stem
            _write_code(spec.loader.get_code(name), library / f"{stem}.pyc")
    _write_encodings(home, library)
    _write_landmark(home, library)
    return extensions


def _write_encodings(home: str, library: Path) -> None:
    utf_8 = Path(home, "encodings", "utf_8.py").read_text(encoding="utf-8")
    code = compile(utf_8 + ENCODINGS, "encodings/__init__.py", "exec", dont_inherit=True)
    _write_code(code, library / "encodings" / "__init__.pyc")


def _write_landmark(home: str, library: Path) -> None:
    """By os.pyc Python knows its library's folder; before 3.11 it was by os.py alone."""
    source = Path(home, "os.py").read_bytes()
    code = compile(source, "os.py", "exec", dont_inherit=True)
    if sys.version_info >= (3, 11):
        _write_code(code, library / "os.pyc")
    else:
        (library / "os.py").write_bytes(source)
        _write_code(code, library / "__pycache__" / f"os.{sys.implementation.cache_tag}.pyc")


def _warden_code(source: Path) -> CodeType:
    """Without docstrings, and with annotations left unevaluated but no import of __future__."""
    import __future__

    import ast

    tree = ast.parse(source.read_bytes())
    tree.body = [n for n in tree.body if getattr(n, "module", None) != "__future__"]
    flags = __future__.annotations.compiler_flag
    name = f"warden/{source.name}"
    code: CodeType = compile(tree, name, "exec", flags, dont_inherit=True, optimize=2)
    return code


def _write_code(code: CodeType, path: Path) -> None:
    """A .pyc that is never checked against a source."""
    import importlib.util
    import marshal

    path.parent.mkdir(parents=True, exist_ok=True)
    flags = (1).to_bytes(4, "little")
    path.write_bytes(importlib.util.MAGIC_NUMBER + flags + bytes(8) + marshal.dumps(code))
    path.chmod(0o644)


def _copy(source: str, target: Path) -> None:
    import shutil

    shutil.copyfile(source, target)
    target.chmod(0o755)


def _loader(binary: str) -> str:
    """The ELF interpreter that a binary asks for (its PT_INTERP)."""
    import struct

    with open(binary, "rb") as file:
        data = file.read(1 << 16)
    if data[:6] != b"\x7fELF\x02\x01":
        raise SystemExit(f"not a 64-bit little-endian ELF binary: {binary}")
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for entry in range(table, table + size * count, size):
        (kind,) = struct.unpack_from("<I", data, entry)
        if kind == 3:
            (offset,) = struct.unpack_from("<Q", data, entry + 8)
            (length,) = struct.unpack_from("<Q", data, entry + 32)
            return data[offset : offset + length].rstrip(b"\0").decode()
    raise SystemExit(f"statically linked: {binary}")


def _shared_objects(loader: str, binaries: list[str]) -> list[str]:
    """All libraries the binaries need, as the loader itself finds them; itself left out."""
    import subprocess

    found = {}
    for binary in binaries:
        command = [loader, "--list", binary]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            path = rest.rpartition(" (")[0]
            if not arrow or os.path.realpath(path) == os.path.realpath(loader):
                continue
            if not os.path.isabs(path):
                raise SystemExit(f"{binary} needs {name}, which is not here")
            found[name] = path
    return sorted(found.values())


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))

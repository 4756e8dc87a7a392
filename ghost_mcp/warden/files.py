"""File operations that answer at once. Paths are paths in the cave; the kernel is the boundary around it."""

from __future__ import annotations

import os
import stat as modes

from .peers import CHUNK, WardenError
from .program import HOME, RUN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .peers import Stream

# Not files of the cave: the kernel's own trees, and Ghost's.
OUTSIDE = ("/proc", "/sys", "/dev", "/.ghost", RUN)
MAX_PATH = 4096
MAX_MEMORY = 8 << 20
ONE_FRAME = 3 << 16


def resolve(path: Any) -> str:
    """An absolute, normalized path in the cave. Relative ones stand in /workspace and stay in it.

    Raises invalid_path, path_outside.
    """
    try:
        raw = os.fsencode(path) if isinstance(path, str) else b""
    except UnicodeEncodeError:  # half a character
        raw = b""
    if not raw or b"\0" in raw or len(raw) > MAX_PATH:
        raise WardenError("invalid_path", f"not a path: {ascii(path)[:100]}")
    if path.startswith("~/") or path == "~":
        path = os.environ.get("HOME", "/") + path[1:]
    full = os.path.normpath(os.path.join(HOME, path))
    if full.startswith("//"):
        full = full[1:]
    if not path.startswith("/") and full != HOME and not full.startswith(HOME + "/"):
        raise WardenError(
            "path_outside",
            f"{path[:200]} leaves the workspace",
            "Use an absolute path to name another place.",
        )
    return _inside(full)


def _inside(full: str) -> str:
    for tree in OUTSIDE:
        if full == tree or full.startswith(tree + "/"):
            raise WardenError("path_outside", f"{full[:200]} is not a file of the cave")
    return full


def real(path: Any, *, last: bool = True) -> str:
    """The path with its symbolic links followed (``last``: also the last one), still inside."""
    full = resolve(path)
    if last:
        return _inside(os.path.realpath(full))
    return _inside(os.path.join(os.path.realpath(os.path.dirname(full)), os.path.basename(full)))


def version(info: os.stat_result) -> str:
    """Names one content of one file: changes with every write."""
    return f"{info.st_mtime_ns:x}-{info.st_size:x}-{info.st_ino:x}"


_KINDS = {modes.S_IFREG: "file", modes.S_IFDIR: "directory", modes.S_IFLNK: "symlink"}


def kind(info: os.stat_result) -> str:
    """file, directory, symlink or other."""
    return _KINDS.get(modes.S_IFMT(info.st_mode), "other")


def describe(info: os.stat_result) -> dict[str, Any]:
    return {
        "type": kind(info),
        "size": info.st_size,
        "mode": modes.S_IMODE(info.st_mode),
        "mtime": info.st_mtime,
        "version": version(info),
    }


def near(path: str) -> str:
    """A hint: names in the same folder that look alike."""
    import difflib

    parent, name = os.path.split(path)
    try:
        names = sorted(os.listdir(parent))[:2000]
    except OSError:
        return f"There is no folder {parent} either."
    alike = difflib.get_close_matches(name, names, 3, 0.5)
    return (
        f"Near names: {', '.join(alike)}."
        if alike
        else f"{parent} has: {', '.join(names[:8]) or 'nothing'}."
    )


def opened(path: Any) -> tuple[int, os.stat_result, str]:
    """Open a regular file for reading. The descriptor, not the name, is checked: no race can change it."""
    full = resolve(path)
    try:
        fd = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise WardenError("file_not_found", f"no such file: {full}", near(full)) from None
    try:
        info = os.fstat(fd)
        if modes.S_ISDIR(info.st_mode):
            raise WardenError("is_a_directory", f"{full} is a folder", "List it instead.")
        if not modes.S_ISREG(info.st_mode):
            raise WardenError("not_a_file", f"{full} is not a regular file")
        _inside(os.readlink(f"/proc/self/fd/{fd}"))
    except BaseException:
        os.close(fd)
        raise
    return fd, info, full


def read(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, offset, count, steady}``: CLOSE carries what fits one frame; more comes as DATA before it.

    ``steady``: a NOTE says what is read before it comes, and a file that changes meanwhile fails the read.
    """
    fd, info, full = opened(head.get("path"))
    offset = max(0, int(head.get("offset", 0)))
    count = info.st_size - offset if head.get("count") is None else int(head["count"])
    answer = {"path": full, **describe(info)}
    if head.get("steady"):
        stream.note(answer)
        _Pump(stream, fd, offset, count, answer, version(info)).go()
        return
    if count <= ONE_FRAME:
        try:
            data = os.pread(fd, max(0, count), offset)
        finally:
            os.close(fd)
        stream.close(answer, data)
        return
    _Pump(stream, fd, offset, count, answer).go()


class _Pump:
    """Sends a range of a file as fast as the stream has room."""

    def __init__(
        self,
        stream: Stream,
        fd: int,
        offset: int,
        count: int,
        answer: dict[str, Any],
        steady: str = "",
    ) -> None:
        self.stream, self.fd, self.at, self.left, self.answer = stream, fd, offset, count, answer
        self.steady = steady  # the version that the file must keep
        stream.on_credit = self.go
        stream.on_reset = self.end
        self.waiting = False

    def end(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def go(self) -> None:
        """One piece, then the loop's other work first."""
        self.waiting = False
        if self.fd < 0:
            return
        room = min(self.stream.room, self.left, CHUNK)
        if self.left > 0 and room <= 0:
            return
        data = os.pread(self.fd, max(0, room), self.at)
        self.at += len(data)
        self.left -= len(data)
        if data:
            self.stream.data(data)
        if not data or self.left <= 0:
            now = version(os.fstat(self.fd)) if self.steady else ""
            self.end()
            if now != self.steady:
                self.stream.fail(WardenError("file_changed", "the file changed while it was read"))
                return
            self.stream.close(self.answer)
        elif not self.waiting:
            self.waiting = True
            self.stream.peer.warden.after(0, self.go)


def write(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, mode: create|overwrite|append, parents, permissions, version, more}``: atomic.

    The content is the body and, with ``more``, the DATA until EOF. With ``version`` the write is refused
    (file_changed) unless the file still is that version; the check and the rename have no gap between them
    that another call could use.
    """
    writer = _Writer(stream, head)
    try:
        writer.take(body)
        if not head.get("more"):
            writer.finish()
            return
    except BaseException:
        writer.abandon()
        raise
    stream.on_data = writer.more
    stream.on_eof = lambda channel: writer.finish()
    stream.on_reset = writer.abandon


class _Writer:
    def __init__(self, stream: Stream, head: dict[str, Any]) -> None:
        self.stream, self.head = stream, head
        self.full = real(head.get("path"))
        self.kind = head.get("mode", "overwrite")
        if self.kind not in ("create", "overwrite", "append"):
            raise WardenError("invalid_argument", f"not a way to write: {str(self.kind)[:40]}")
        self.mode = head.get("permissions")
        if self.mode is not None and type(self.mode) is not int:
            raise WardenError("invalid_argument", f"not permissions: {str(self.mode)[:40]}")
        parent = os.path.dirname(self.full)
        if head.get("parents"):
            os.makedirs(parent, exist_ok=True)
        elif os.path.lexists(parent) and not os.path.isdir(parent):
            raise WardenError("not_a_directory", f"{parent} is not a folder")
        elif not os.path.isdir(parent):
            raise WardenError(
                "file_not_found", f"no such folder: {parent}", "Set parents to make it."
            )
        self._check()
        self.temporary = ""
        self.fd = self._open(parent)
        self.size = 0

    def _open(self, parent: str) -> int:
        """An unnamed file in the same folder, so that a crash leaves nothing; a named one where that fails."""
        try:
            return os.open(parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError:
            self.temporary = f"{parent}/.{os.urandom(8).hex()}.part"
            return os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def _check(self) -> os.stat_result | None:
        try:
            info = os.stat(self.full)
        except FileNotFoundError:
            info = None
        if info is not None and modes.S_ISDIR(info.st_mode):
            raise WardenError("is_a_directory", f"{self.full} is a folder")
        if info is not None and not modes.S_ISREG(info.st_mode):
            raise WardenError("not_a_file", f"{self.full} is not a regular file")
        if info is not None and self.kind == "create":
            raise WardenError(
                "file_exists", f"{self.full} exists", "Use overwrite, or another name."
            )
        wanted, there = self.head.get("version"), version(info) if info is not None else ""
        if wanted is not None and wanted != there:
            raise WardenError(
                "file_changed",
                f"{self.full} is not the version that was read",
                "Read it again and repeat the change.",
                {"version": there},
            )
        if info is not None and not os.access(self.full, os.W_OK):
            raise WardenError("permission_refused", f"{self.full} is not writable")
        return info

    def take(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = os.write(self.fd, view)
            self.size += count
            view = view[count:]

    def more(self, channel: int, data: bytes) -> None:
        try:
            self.take(data)
        except OSError:
            self.abandon()
            raise

    def finish(self) -> None:
        try:
            info = self._check()
            if self.kind == "append" and info is not None:
                self._append(info)
            else:
                self._replace(info)
            done = os.stat(self.full)
        finally:
            self.abandon()
        self.stream.close(
            {"path": self.full, "created": info is None, "written": self.size, **describe(done)}
        )

    def _replace(self, info: os.stat_result | None) -> None:
        mode = self.mode
        if mode is None:
            mode = modes.S_IMODE(info.st_mode) if info is not None else 0o644
        os.fchmod(self.fd, mode & 0o777)
        if not self.temporary and (self.kind == "create" or info is None) and self._name(self.full):
            return
        if not self.temporary:
            # Only a rename takes another's place. A crash just here leaves this name too, of a whole file.
            named = f"{os.path.dirname(self.full)}/.{os.urandom(8).hex()}.part"
            self._name(named)
            self.temporary = named
        if self.kind == "create":
            os.link(self.temporary, self.full)  # fails when the name has come meanwhile
        else:
            os.rename(self.temporary, self.full)
            self.temporary = ""

    def _name(self, path: str) -> bool:
        """Give the unnamed file its name; False where another has come meanwhile that may be replaced."""
        try:
            # A descriptor is given, though the path is absolute, so that Python calls linkat(2): it follows.
            os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=self.fd, follow_symlinks=True)
        except FileExistsError:
            if self.kind == "create":
                raise
            return False
        return True

    def _append(self, info: os.stat_result) -> None:
        """Append in one go; cut off again when the disk is full, so that all or nothing is there."""
        target = os.open(self.full, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            at = 0
            while piece := os.pread(self.fd, 1 << 20, at):
                view = memoryview(piece)
                while view:
                    view = view[os.write(target, view) :]
                at += len(piece)
        except OSError:
            os.ftruncate(target, info.st_size)
            raise
        finally:
            os.close(target)

    def abandon(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.temporary:
            temporary, self.temporary = self.temporary, ""
            os.unlink(temporary)


def stat(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path}``: what stands there; a symbolic link is described itself, with its target."""
    full = real(head.get("path"), last=False)
    try:
        info = os.lstat(full)
    except FileNotFoundError:
        raise WardenError("file_not_found", f"no such file: {full}", near(full)) from None
    answer = {"path": full, **describe(info)}
    if modes.S_ISLNK(info.st_mode):
        answer["target"] = os.readlink(full)
    stream.close(answer)


def mkdir(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path}``: a folder and its parents; already there is fine."""
    full = real(head.get("path"))
    os.makedirs(full, exist_ok=True)
    stream.close({"path": full})


def move(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, to, overwrite}``: rename within the cave."""
    source, target = real(head.get("path"), last=False), real(head.get("to"), last=False)
    if os.path.lexists(target) and not head.get("overwrite"):
        raise WardenError("file_exists", f"{target} exists", "Set overwrite to replace it.")
    try:
        os.rename(source, target)
    except OSError as exc:
        if exc.errno != 18:  # EXDEV: another mount of the same cave
            raise
        import shutil

        shutil.move(source, target)
    stream.close({"path": target})

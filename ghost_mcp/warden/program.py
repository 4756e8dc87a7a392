# The warden: the one program that runs inside every cave and does there what the hub asks.
"""The cave's lifetime, who may speak to its warden, and how that starts. Operations are imported on first use.

Standard library only, Python 3.9+. Nothing slow is imported here (no json, re, enum, selectors, signal,
subprocess): this module's imports are most of the time a cave takes to start. The warden is PID 1 of its
cave: when it exits, for its deadline, its idle limit or the end of its lifeline, the kernel ends the rest.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C half: signal itself imports enum
import _socket
import os
import sys
from time import monotonic, time

from .loop import READ, Loop
from .peers import Peer, WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .commands import Commands
    from .egress import Door
    from .loop import Timer
    from .services import Services
    from .sessions import Sessions

FREED = 1 << 20  # of the program's memory, kept for what comes next
MAX_PEERS = 64
HOME = "/workspace"
RUN = "/run/ghost"


class Warden(Loop):
    """The cave's lifetime and the links to it, on the loop that its operations share."""

    _peer_uid: int | None = None
    _outsiders = False
    _lifetime_timer: Timer | None = None
    lifeline_fd = -1
    door: Door | None = None
    services: Services | None = None
    commands: Commands | None = None
    sessions: Sessions | None = None

    def __init__(self) -> None:
        super().__init__()
        self.boot = monotonic()
        self.env: dict[str, str] = {}
        self.secrets: dict[str, bytes] = {}
        self.peers: set[Peer] = set()
        self.deadline: float | None = None
        self.idle_s: float | None = None
        self.lonely_s: float | None = None  # ephemeral: ends so long after the last hub left
        # When a hub last said that it wants the cave, if one ever did.
        self.held: float | None = None
        self.active = self.boot
        _signal.signal(
            _signal.SIGTERM, lambda number, frame: self.exit("asked to end", 128 + number)
        )

    # --- the log ---------------------------------------------------------------------------------

    def log(self, text: str) -> None:
        """One line to the cave's log. Control bytes are escaped: what runs in the cave chose some of them.

        The log lies outside of the cave: no secret is written into it.
        """
        for name, value in self.secrets.items():
            if len(value) >= 6:
                text = text.replace(os.fsdecode(value).strip(), f"[secret {name}]")
        line = f"{time():.3f} {ascii(text)[1:-1][:2000]}\n".encode("ascii")
        try:
            os.write(2, line)
        except OSError:
            return

    def failed(self, exc: Exception) -> None:
        """Log where an unforeseen error came from; the hub is told only its class."""
        if isinstance(exc, (WardenError, OSError)):
            return
        import traceback

        for line in traceback.format_exception(type(exc), exc, exc.__traceback__)[-6:]:
            self.log(line)

    def callback_failed(self, exc: Exception) -> None:
        self.log(f"a callback failed: {exc!r}")
        self.failed(exc)

    # --- links -----------------------------------------------------------------------------------

    def listen(
        self, sock: _socket.socket, peer_uid: int | None = None, *, outsiders: bool = False
    ) -> None:
        """Take connections; with ``peer_uid`` only that user's: the cave's own programs run as another.

        ``outsiders``: only those of processes that came from outside of the cave, where users are all one.
        """
        self._peer_uid, self._outsiders = peer_uid, outsiders
        self.accept(sock, self._accepted)

    def _accepted(self, peer: _socket.socket) -> None:
        if len(self.peers) >= MAX_PEERS or not self._welcome(peer):
            peer.close()
            return
        self.peers.add(Peer(self, peer))

    def _welcome(self, peer: _socket.socket) -> bool:
        pid, uid = _credentials(peer)
        return self._peer_uid in (None, uid) and (not self._outsiders or _is_outsider(pid))

    def greeting(self) -> dict[str, Any]:
        """What each hub is told first. ``egress``: whether somebody serves the cave's way out, if it has one."""
        told: dict[str, Any] = {"boot": self.boot, "pid": os.getpid(), "secrets": len(self.secrets)}
        if self.door is not None:
            told["egress"] = bool(self.door.attached)
        return told

    def left(self, peer: Peer) -> None:
        self.peers.discard(peer)
        if peer.used:  # one that only looked whether anybody answers asked for nothing
            self.touch()

    # --- lifetime --------------------------------------------------------------------------------

    def run(self) -> None:
        self._check_lifetime()
        super().run()

    def exit(self, why: str, code: int = 0) -> None:
        """End the cave when this turn of the loop is over; the first reason counts."""
        if self.exit_code is None:
            self.exit_code = code
            self.log(f"cave ends: {why}")

    def touch(self) -> None:
        """The cave is in use: its idle limit counts from now."""
        self.active = monotonic()

    def hold(self) -> None:
        """From now on ``lonely_s`` counts from the last call of this: a connection can outlive its hub."""
        self.held = monotonic()

    def set_lifetime(
        self, *, deadline_s: float | None, idle_s: float | None, lonely_s: float | None
    ) -> None:
        """Limits from now on, in seconds; None is none."""
        self.deadline = None if deadline_s is None else monotonic() + deadline_s
        self.idle_s, self.lonely_s = idle_s, lonely_s
        if self._lifetime_timer is not None:
            self._lifetime_timer.cancel()
        self._check_lifetime()

    def _check_lifetime(self) -> None:
        """End when a limit is over; else look again within a second, since what counts may change."""
        now = monotonic()
        if any(not stream.passive for peer in self.peers for stream in peer.streams.values()):
            self.active = now
        limits = self._limits()
        if not limits:
            self._lifetime_timer = None
            return
        when, why = min(limits)
        if when <= now:
            self.exit(why)
            return
        self._lifetime_timer = self.after(min(when - now, 1.0), self._check_lifetime)

    def _limits(self) -> list[tuple[float, str]]:
        """When the cave ends, as things are now, and why: of several the first."""
        found = []
        if self.deadline is not None:
            found.append((self.deadline, "its time is over"))
        if self.idle_s is not None:
            found.append((self.active + self.idle_s, "idle for too long"))
        if self.lonely_s is not None and self.held is not None:
            found.append((self.held + self.lonely_s, "who made it is gone"))
        elif self.lonely_s is not None and not self.peers:
            found.append((self.active + self.lonely_s, "no hub is connected"))
        return found

    def lifeline(self, fd: int) -> None:
        """End when the other end of ``fd`` closes."""
        os.set_inheritable(fd, False)
        self.watch(fd, READ, lambda events: self.exit("its owner is gone"))
        self.lifeline_fd = fd

    def release(self) -> None:
        """Let go of the lifeline: the cave now outlives the process that made it."""
        if self.lifeline_fd >= 0:
            self.unwatch(self.lifeline_fd)
            os.close(self.lifeline_fd)
            self.lifeline_fd = -1


def close_strays(keep: set[int]) -> None:
    """Close what whoever started us had open: no program of the cave inherits it."""
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) > 2 and int(entry) not in keep:
            try:
                os.close(int(entry))
            except OSError:
                continue  # the listing's own descriptor


def _credentials(peer: _socket.socket) -> tuple[int, int]:
    """Who is at the other end of a unix socket: process and user."""
    raw = peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # pid, uid, gid
    return int.from_bytes(raw[:4], sys.byteorder), int.from_bytes(raw[4:8], sys.byteorder)


def _is_outsider(pid: int) -> bool:
    """Whether an engine put the process into the cave: its parent is not of this pid namespace, and reads as 0.

    A program of the cave cannot come by that: orphans get PID 1 as their parent (pid_namespaces(7)).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[1] == b"0"
    except (OSError, IndexError):
        return False


def unconfined(root: str) -> None:
    """Live without namespaces: the cave's folders stand below ``root``, and orphans come to this process."""
    from . import libc

    global HOME, RUN
    HOME, RUN = f"{root}/workspace", f"{root}/run"
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)


def end_programs() -> None:
    """What the kernel does by itself where this process is PID 1: end all that came from it."""
    from . import processes

    processes.Tree(os.getpid(), "", 0, lambda: True, include_root=False).kill()


oom_score_fd = -1


def harden() -> None:
    """Keep other programs of the cave out of this process: not dumpable, so no /proc/1/mem or /proc/1/fd.

    Our own files in /proc are closed to us too then; what is needed later is opened before, while nothing
    else runs here yet. (The loader may be unreadable, which makes a process not dumpable from its start.)
    """
    global oom_score_fd
    from . import libc

    libc.keep_freed(FREED)
    libc.prctl(libc.PR_SET_DUMPABLE, 1)
    try:
        oom_score_fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        oom_score_fd = -1  # a kernel that does not let us: then all are equal when memory runs out
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def main(argv: list[str] | None = None) -> None:
    """``--listen-fd N | --listen PATH``, ``--peer-uid N``, ``--from-outside``, ``--lifeline-fd N``, ``--lonely S``,
    ``--root FOLDER``, or ``--relay PATH``; see the backends for their use."""
    args = list(sys.argv[1:] if argv is None else argv)
    outsiders = "--from-outside" in args
    if outsiders:
        args.remove("--from-outside")
    options = dict(zip(args[::2], args[1::2]))
    if "--relay" in options:
        from . import relay

        relay.run(options["--relay"])
        return
    close_strays(
        {int(options[name]) for name in ("--listen-fd", "--lifeline-fd") if name in options}
    )
    if "--root" in options:
        unconfined(options["--root"])
    warden = Warden()
    harden()
    if "--lifeline-fd" in options:
        warden.lifeline(int(options["--lifeline-fd"]))
    if "--lonely" in options:  # until configured: a cave whose maker died during its creation ends
        warden.set_lifetime(deadline_s=None, idle_s=None, lonely_s=float(options["--lonely"]))
    peer_uid = int(options["--peer-uid"]) if "--peer-uid" in options else None
    warden.listen(_listening(options, peer_uid), peer_uid, outsiders=outsiders)
    warden.run()
    if "--root" in options:
        end_programs()
    os._exit(warden.exit_code or 0)


def _listening(options: dict[str, str], peer_uid: int | None) -> _socket.socket:
    """The socket that was inherited, or a new one at a path: where another user comes, open to all."""
    if "--listen-fd" in options:
        sock = _socket.socket(fileno=int(options["--listen-fd"]))
        os.set_inheritable(sock.fileno(), False)
        return sock
    path = options["--listen"]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):  # a restarted container finds the socket of its last run
        os.unlink(path)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.bind(path)
    os.chmod(path, 0o600 if peer_uid is None else 0o666)
    sock.listen(64)
    return sock

# The warden: the one program that runs inside every cave and does there what the hub asks.
"""Event loop, link connections and lifetime. The operations live beside it and are imported on first use.

Standard library only, Python 3.9+. Nothing slow is imported here (no json, re, enum, selectors, signal,
subprocess): this module's imports are most of the time a cave takes to start. The warden is PID 1 of its
cave: when it exits, for its deadline, its idle limit or the end of its lifeline, the kernel ends the rest.
"""

from __future__ import annotations

import _heapq
import _signal  # type: ignore[import-not-found]  # the C half: signal itself imports enum
import _socket
import os
import select
import sys
from time import monotonic, time

from . import wire
from .carrier import Carrier

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .egress import Door
    from .services import Services

    Callback = Callable[[int], None]

READ = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
WRITE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
CHUNK = 1 << 16
# Above this much unsent output a connection's sources pause: a flood never delays a small answer for long.
HIGH_WATER = 1 << 18
FREED = 1 << 20  # of the program's memory, kept for what comes next
MAX_PEERS = 64
ACCEPT_PAUSE_S = 0.1
HOME = "/workspace"
RUN = "/run/ghost"

# operation -> (module, function); a function takes (stream, head, body) and answers through the stream.
OPERATIONS = {
    "configure": ("lifetime", "configure"),
    "secrets": ("lifetime", "secrets"),
    "hold": ("lifetime", "hold"),
    "stats": ("lifetime", "stats"),
    "exec": ("commands", "start"),
    "command": ("commands", "control"),
    "commands": ("commands", "listing"),
    "output": ("commands", "output"),
    "session": ("sessions", "control"),
    "read": ("files", "read"),
    "write": ("files", "write"),
    "stat": ("files", "stat"),
    "mkdir": ("files", "mkdir"),
    "move": ("files", "move"),
    "remove": ("trees", "remove"),
    "list": ("trees", "listing"),
    "search": ("trees", "search"),
    "edit": ("trees", "edit"),
    "snapshot": ("trees", "snapshot"),
    "pack": ("trees", "pack"),
    "unpack": ("trees", "unpack"),
    "watch": ("watch", "watch"),
    "dial": ("ports", "dial"),
    "egress": ("egress", "attach"),
    "service": ("services", "control"),
    "services": ("services", "look"),
}


class WardenError(Exception):
    """A failure to tell the hub: crosses the border as ``{code, message, hint}``."""

    def __init__(
        self, code: str, message: str, hint: str = "", data: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.head: dict[str, Any] = {"code": code, "message": message, "hint": hint}
        if data:
            self.head["data"] = data


class Stream:
    """The warden's end of one stream. A handler sets the ``on_*`` attributes it needs."""

    __slots__ = ("id", "on_credit", "on_data", "on_eof", "on_note", "on_reset", "passive", "peer")

    def __init__(self, peer: Peer, stream: int) -> None:
        self.peer = peer
        self.id = stream
        self.passive = False  # a stream that only waits: the cave is idle all the same
        self.on_data: Callable[[int, bytes], int | None] | None = None
        self.on_eof: Callable[[int], None] | None = None
        self.on_note: Callable[[dict[str, Any], bytes], None] | None = None
        self.on_credit: Callable[[], None] | None = None
        self.on_reset: Callable[[], None] | None = None

    @property
    def room(self) -> int:
        """Bytes of DATA this stream may send now: its credit, or nothing while the connection is congested."""
        return 0 if self.peer.congested else min(self.peer.wire.credit(self.id), CHUNK)

    @property
    def open(self) -> bool:
        return self.peer.wire.is_open(self.id)

    def data(self, data: bytes, channel: int = 0) -> None:
        self.peer.send(self.peer.wire.send_data(self.id, data, channel))

    def eof(self, channel: int = 0) -> None:
        self.peer.send(self.peer.wire.send_eof(self.id, channel))

    def note(self, head: dict[str, Any], body: bytes = b"") -> None:
        self.peer.send(self.peer.wire.send_note(self.id, head, body))

    def consumed(self, count: int) -> None:
        self.peer.send(self.peer.wire.consumed(self.id, count))

    def close(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Answer and end the stream; nothing happens when the hub has given it up already."""
        if self.open:
            try:
                data = self.peer.wire.send_close(self.id, {"ok": True, **head}, body)
            except (
                wire.LocalProtocolError
            ):  # a cave's own names and texts are in it: it may be long
                self.fail(WardenError("too_large", "the answer does not fit one message"))
                return
            self.peer.send(data)
            self.peer.drop(self)

    def fail(self, exc: BaseException) -> None:
        if self.open:
            from .failures import error_head  # not loaded until something fails

            self.peer.send(self.peer.wire.send_close(self.id, {"ok": False, **error_head(exc)}))
            self.peer.drop(self)


class Peer:
    """One link connection: what carries it, its wire state and its streams."""

    def __init__(self, warden: Warden, sock: _socket.socket) -> None:
        self.warden = warden
        self.carrier = Carrier(sock)
        self.wire = wire.Connection(hub=False)
        self.streams: dict[int, Stream] = {}
        self.used = False
        self._out = bytearray()
        self._closed = False
        warden.watch(self.carrier.reads, READ, self._ready)
        self.send(self.wire.send_hello(warden.greeting()))

    @property
    def congested(self) -> bool:
        return len(self._out) > HIGH_WATER

    def send(self, data: bytes) -> None:
        if not data or self._closed:
            return
        if not self._out:
            try:
                sent = self.carrier.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._await_room(True)
        self._out += data

    def _await_room(self, wanted: bool) -> None:
        if not self.carrier.relayed:
            self.warden.watch(self.carrier.reads, READ | WRITE if wanted else READ, self._ready)
        elif wanted:
            self.warden.watch(self.carrier.writes, WRITE, lambda events: self._flush())
        else:
            self.warden.unwatch(self.carrier.writes)

    def _handed_over(self) -> None:
        """From now on the relay's own input and output carry the link; its socket only tells that it has ended."""
        self.warden.watch(self.carrier.reads, READ, self._ready)
        self.warden.watch(self.carrier.sock.fileno(), READ, lambda events: self.close())
        if self._out:
            self._await_room(True)

    def drop(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)

    def open(self, head: dict[str, Any]) -> Stream:
        """Open a stream from this side (a connection that came to a listening port)."""
        number, data = self.wire.open(head)
        stream = self.streams[number] = Stream(self, number)
        self.send(data)
        return stream

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            direct = not self.carrier.relayed
            try:
                data = self.carrier.receive(1 << 18)
            except BlockingIOError:
                if direct and self.carrier.relayed:
                    self._handed_over()
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            self._received(data)

    def _flush(self) -> None:
        was = self.congested
        try:
            sent = self.carrier.send(memoryview(self._out)[: 1 << 18])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._out[:sent]
        if not self._out:
            self._await_room(False)
        if was and not self.congested:
            for stream in list(self.streams.values()):
                if stream.on_credit is not None:
                    stream.on_credit()

    def _received(self, data: bytes) -> None:
        try:
            frames = self.wire.receive(data)
        except wire.ProtocolError:
            self.close()
            return
        for frame in frames:
            try:
                self._handle(frame)
            except wire.ProtocolError:
                self.close()
            if self._closed:
                return

    def _handle(self, frame: wire.Frame) -> None:
        kind = frame.kind
        if kind == wire.OPEN:
            self._open(frame)
        elif kind == wire.PING:
            self.send(self.wire.send_pong(frame.body))
        elif frame.stream:
            stream = self.streams.get(frame.stream)
            if stream is None:
                return
            try:
                self._deliver(stream, frame)
            except wire.ProtocolError:
                raise
            except Exception as exc:  # noqa: BLE001  (one call fails, never the cave)
                self.warden.failed(exc)
                stream.fail(exc)

    def _deliver(self, stream: Stream, frame: wire.Frame) -> None:
        kind = frame.kind
        if kind == wire.DATA:
            # A handler that takes the bytes later answers how many it took now and credits the rest itself.
            taken = (
                stream.on_data(frame.channel, frame.body) if stream.on_data is not None else None
            )
            self.send(self.wire.consumed(stream.id, len(frame.body) if taken is None else taken))
        elif kind == wire.EOF and stream.on_eof is not None:
            stream.on_eof(frame.channel)
        elif kind == wire.NOTE and stream.on_note is not None:
            stream.on_note(frame.head, frame.body)
        elif kind == wire.CREDIT and stream.on_credit is not None:
            stream.on_credit()
        elif kind in (wire.RESET, wire.CLOSE):
            self.drop(stream)
            if stream.on_reset is not None:
                stream.on_reset()

    def _open(self, frame: wire.Frame) -> None:
        stream = self.streams[frame.stream] = Stream(self, frame.stream)
        name = frame.head.get("op")
        if name not in ("hold", "services"):  # to hold a cave, or to look at it, is not to use it
            self.used = True
            self.warden.touch()
        try:
            where = OPERATIONS.get(name) if isinstance(name, str) else None
            if where is None:
                raise WardenError(
                    "unsupported", f"this warden does not know the operation {str(name)[:64]}"
                )
            operation(where)(stream, frame.head, frame.body)
        except wire.ProtocolError:
            raise
        except Exception as exc:  # noqa: BLE001  (one call fails, never the cave)
            self.warden.failed(exc)
            stream.fail(exc)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for fd in {self.carrier.reads, self.carrier.writes, self.carrier.sock.fileno()}:
            self.warden.unwatch(fd)
        self.carrier.close()
        self.warden.left(self)
        for stream in list(self.streams.values()):
            self.drop(stream)
            if stream.on_reset is not None:
                stream.on_reset()


_loaded: dict[tuple[str, str], Callable[[Stream, dict[str, Any], bytes], None]] = {}


def operation(where: tuple[str, str]) -> Callable[[Stream, dict[str, Any], bytes], None]:
    found = _loaded.get(where)
    if found is None:
        module = __import__(f"{__package__}.{where[0]}", fromlist=[where[1]])
        found = _loaded[where] = getattr(module, where[1])
    return found


class Timer:
    """A pending call. ``cancel`` makes it do nothing."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        self.call = None


class Warden:
    """The event loop, the children and the cave's lifetime."""

    def __init__(self) -> None:
        self.boot = monotonic()
        self.env: dict[str, str] = {}
        self.secrets: dict[str, bytes] = {}
        self.peers: set[Peer] = set()
        self.deadline: float | None = None
        self.idle_s: float | None = None
        self.lonely_s: float | None = None  # ephemeral: ends so long after the last hub left
        self.held: float | None = (
            None  # when a hub last said that it wants the cave, if one ever did
        )
        self.active = self.boot
        self.exit_code: int | None = None
        self._poll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._children: dict[int, Callable[[int], None]] = {}
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(wake_w, False)
        _signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda number, frame: None)
        _signal.signal(
            _signal.SIGTERM, lambda number, frame: self.exit("asked to end", 128 + number)
        )
        self.watch(self._wake_r, READ, self._woken)

    # --- what operations use ---------------------------------------------------------------------

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        if fd in self._callbacks:
            self._poll.modify(fd, events)
        else:
            self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(monotonic() + delay_s, call)
        _heapq.heappush(self._timers, timer)
        return timer

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(wait status)`` when the child ``pid`` has ended."""
        self._children[pid] = callback

    def touch(self) -> None:
        self.active = monotonic()

    def hold(self) -> None:
        """From now on ``lonely_s`` counts from the last call of this: a connection can outlive its hub."""
        self.held = monotonic()

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

    def exit(self, why: str, code: int = 0) -> None:
        if self.exit_code is None:
            self.exit_code = code
            self.log(f"cave ends: {why}")

    # --- the loop --------------------------------------------------------------------------------

    def listen(
        self, sock: _socket.socket, peer_uid: int | None = None, *, outsiders: bool = False
    ) -> None:
        """Take connections; with ``peer_uid`` only that user's: the cave's own programs run as another.

        ``outsiders``: only those of processes that came from outside of the cave, where users are all one.
        """
        self._peer_uid, self._outsiders = peer_uid, outsiders
        self.accept(sock, self._accepted)

    def accept(self, sock: _socket.socket, take: Callable[[_socket.socket], None]) -> None:
        """Hand each connection of a listening socket to ``take``. Out of descriptors, pause instead of spinning."""

        def ready(events: int) -> None:
            try:
                fd, _ = sock._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self.unwatch(sock.fileno())
                self.after(ACCEPT_PAUSE_S, again)
                return
            client = _socket.socket(fileno=fd)
            client.setblocking(False)
            take(client)

        def again() -> None:
            if sock.fileno() >= 0:
                self.watch(sock.fileno(), READ, ready)

        sock.setblocking(False)
        again()

    def lifeline(self, fd: int) -> None:
        """End when the other end of ``fd`` closes."""
        os.set_inheritable(fd, False)
        self.watch(fd, READ, lambda events: self.exit("its owner is gone"))
        self.lifeline_fd = fd

    def run(self) -> None:
        self._check_lifetime()
        while self.exit_code is None:
            for fd, events in self._poll.poll(self._patience(), 64):
                callback = self._callbacks.get(fd)
                if callback is not None and not self._safely(callback, events):
                    self.unwatch(fd)
            self._run_timers()

    def _safely(self, call: Callable[..., None], *args: int) -> bool:
        """Whether a callback went well: one that fails is logged, and ends nothing else in the cave."""
        try:
            call(*args)
        except Exception as exc:  # noqa: BLE001
            self.log(f"a callback failed: {exc!r}")
            self.failed(exc)
            return False
        return True

    def _patience(self) -> float:
        while self._timers and self._timers[0].call is None:
            _heapq.heappop(self._timers)
        return max(0.0, self._timers[0].when - monotonic()) if self._timers else -1.0

    def _run_timers(self) -> None:
        now = monotonic()
        while self._timers and self._timers[0].when <= now:
            call = _heapq.heappop(self._timers).call
            if call is not None:
                self._safely(call)

    def _accepted(self, peer: _socket.socket) -> None:
        if len(self.peers) >= MAX_PEERS or not self._welcome(peer):
            peer.close()
            return
        self.peers.add(Peer(self, peer))

    def _welcome(self, peer: _socket.socket) -> bool:
        pid, uid = _credentials(peer)
        return self._peer_uid in (None, uid) and (not self._outsiders or _is_outsider(pid))

    _peer_uid: int | None = None
    _outsiders = False

    def left(self, peer: Peer) -> None:
        self.peers.discard(peer)
        if peer.used:  # one that only looked whether anybody answers asked for nothing
            self.touch()

    def _woken(self, events: int) -> None:
        os.read(self._wake_r, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            callback = self._children.pop(pid, None)
            if callback is not None:
                self._safely(callback, status)

    def _check_lifetime(self) -> None:
        """End at the deadline, after the idle limit, or when an ephemeral cave is alone for too long."""
        now = monotonic()
        if any(not stream.passive for peer in self.peers for stream in peer.streams.values()):
            self.active = now
        limits = [(self.deadline, "its time is over")]
        if self.idle_s is not None:
            limits.append((self.active + self.idle_s, "idle for too long"))
        if self.lonely_s is not None and self.held is not None:
            limits.append((self.held + self.lonely_s, "who made it is gone"))
        elif self.lonely_s is not None and not self.peers:
            limits.append((self.active + self.lonely_s, "no hub is connected"))
        due = [(when, why) for when, why in limits if when is not None]
        if not due:
            self._lifetime_timer = None
            return
        when, why = min(due)
        if when <= now:
            self.exit(why)
            return
        self._lifetime_timer = self.after(min(when - now, 1.0), self._check_lifetime)

    _lifetime_timer: Timer | None = None
    lifeline_fd = -1
    door: Door | None = None
    services: Services | None = None

    def greeting(self) -> dict[str, Any]:
        """What each hub is told first. ``egress``: whether somebody serves the cave's way out, if it has one."""
        told: dict[str, Any] = {"boot": self.boot, "pid": os.getpid(), "secrets": len(self.secrets)}
        if self.door is not None:
            told["egress"] = bool(self.door.attached)
        return told

    def set_lifetime(
        self, *, deadline_s: float | None, idle_s: float | None, lonely_s: float | None
    ) -> None:
        """Limits from now on, in seconds; None is none."""
        self.deadline = None if deadline_s is None else monotonic() + deadline_s
        self.idle_s, self.lonely_s = idle_s, lonely_s
        if self._lifetime_timer is not None:
            self._lifetime_timer.cancel()
        self._check_lifetime()

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
    peer_uid = int(options["--peer-uid"]) if "--peer-uid" in options else None
    if "--listen-fd" in options:
        sock = _socket.socket(fileno=int(options["--listen-fd"]))
        os.set_inheritable(sock.fileno(), False)
    else:
        path = options["--listen"]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path):  # a restarted container finds the socket of its last run
            os.unlink(path)
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        sock.bind(path)
        os.chmod(path, 0o600 if peer_uid is None else 0o666)
        sock.listen(64)
    if "--lifeline-fd" in options:
        warden.lifeline(int(options["--lifeline-fd"]))
    if "--lonely" in options:  # until configured: a cave whose maker died during its creation ends
        warden.set_lifetime(deadline_s=None, idle_s=None, lonely_s=float(options["--lonely"]))
    warden.listen(sock, peer_uid, outsiders=outsiders)
    warden.run()
    if "--root" in options:
        end_programs()
    os._exit(warden.exit_code or 0)

"""Commands, running or finished: what is known of each, and kept. They outlive the call and the hub that made them."""

from __future__ import annotations

import os
from time import monotonic

from . import processes
from .peers import WardenError
from .program import RUN
from .streams import Feeder, Nowhere, Source, Spool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .loop import Timer
    from .program import Warden

MAX_FINISHED = 64
MAX_KEPT = 128 << 20
MAX_PENDING_INPUT = 1 << 20  # of one command, that it has not read


class Command:
    """One command, running or finished. Its output goes to spools (kept) or to the stream that started it."""

    def __init__(self, warden: Warden, text: str, *, session: str = "") -> None:
        known = of(warden)
        known.count += 1
        self.id = f"c{known.count}"
        self.warden = warden
        self.text = text
        self.session = session
        self.started = monotonic()
        self.ended: float | None = None
        self.exit_code: int | None = None
        self.timed_out = False
        self.note = ""
        self.cwd = ""
        self.pid = 0
        self.spools: dict[int, Spool] = {}
        self.sources: list[Source] = []
        self.feeder: Feeder | None = None
        self.terminal = -1
        self.waiters: list[Callable[[], None]] = []
        self.since = processes.ticks()
        self.tree: processes.Tree | None = None
        self.end_tree: Callable[[], None] = self._kill_tree
        self._unsettled = 0
        self._code: int | None = None
        self._timer: Timer | None = None
        known.commands[self.id] = self
        known.trim()

    @property
    def running(self) -> bool:
        return self.ended is None

    def keep(self, channel: int) -> Spool:
        """Keep what is written to a channel, from its beginning."""
        spool = self.spools[channel] = Spool(f"{of(self.warden).folder}/{self.id}.{channel}")
        return spool

    def kept(self, channel: Any) -> Spool:
        """What was written to a channel. Raises invalid_argument when that is not kept."""
        spool = self.spools.get(channel)
        if spool is None:
            raise WardenError("invalid_argument", f"command {self.id} keeps no such output")
        return spool

    def take(self, fd: int, sink: Any) -> None:
        """Read ``fd`` into ``sink`` until it ends."""
        self._unsettled += 1
        self.sources.append(Source(self.warden, fd, sink, self._settled))

    def limit(self, timeout_s: float | None) -> None:
        """End the whole tree after so long."""
        if timeout_s is not None:
            self._timer = self.warden.after(timeout_s, self._overdue)

    def rooted(self, pid: int, mark: str, *, include_root: bool = True) -> None:
        """Say which processes are this command's."""
        self.pid = pid
        self.tree = processes.Tree(pid, mark, self.since, self._alone, include_root=include_root)

    def _alone(self) -> bool:
        others = of(self.warden).commands.values()
        return not any(other.running for other in others if other is not self)

    def _kill_tree(self) -> None:
        if self.tree is not None:
            self.tree.kill()

    def signal(self, number: int) -> int:
        """Send a signal to the whole tree; returns how many processes it reached."""
        return self.tree.signal(number) if self.tree is not None else 0

    def _overdue(self) -> None:
        self.timed_out = True
        self.kill()

    def kill(self) -> None:
        """End the tree now; the command finishes when its process is reaped."""
        if self.running:
            self.end_tree()

    def exited(self, code: int) -> None:
        """The process has ended: finished as soon as what it wrote is read."""
        self._code = code
        if self.tree is not None:
            self.tree.finished()
        if self._timer is not None:
            self._timer.cancel()
        if self.feeder is not None:
            self.feeder.close()
        for source in list(self.sources):
            source.settle()
        self._check()

    def _settled(self) -> None:
        self._unsettled -= 1
        self._check()

    def _check(self) -> None:
        if self._code is None or self._unsettled > 0 or not self.running:
            return
        self.exit_code, self.ended = self._code, monotonic()
        self.warden.log(f"{self.id} exit {self.exit_code} after {self.ended - self.started:.3f}s")
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter()

    def resume(self) -> None:
        for source in list(self.sources):
            source.resume()

    def status(self) -> dict[str, Any]:
        now = monotonic()
        head: dict[str, Any] = {
            "id": self.id,
            "running": self.running,
            "exit_code": self.exit_code,
            "timed_out": self.timed_out,
            "duration_s": round((self.ended or now) - self.started, 6),
        }
        for key in ("session", "note", "cwd"):
            if getattr(self, key):
                head[key] = getattr(self, key)
        return head

    def report(self, since: dict[str, int], excerpt: int) -> tuple[dict[str, Any], bytes]:
        """Status, and for each kept channel its head and tail from ``since`` on, at most ``excerpt`` bytes."""
        head = self.status()
        pieces: list[bytes] = []
        head["output"] = {}
        for channel, spool in self.spools.items():
            start = min(max(0, since.get(str(channel), 0)), spool.size)
            if spool.size - start <= excerpt:
                first, second = spool.read(start, excerpt)[1], b""
            else:
                first = spool.read(start, excerpt // 2)[1]
                second = spool.read(spool.size - excerpt // 2, excerpt // 2)[1]
            pieces += [first, second]
            head["output"][str(channel)] = {
                "size": spool.size,
                "from": start,
                "head": len(first),
                "tail": len(second),
                "gap": list(spool.gap) if spool.gap[0] < spool.gap[1] else None,
                "lost": spool.lost,
            }
        return head, b"".join(pieces)

    def discard(self) -> None:
        """It could not start: as if it had never been."""
        for source in self.sources:
            source.close()
        self.forget()
        del of(self.warden).commands[self.id]

    def forget(self) -> None:
        """Keep nothing of it. What it left running may go on writing: a closed pipe would end that."""
        for source in self.sources:
            source.sink = Nowhere()
            source.resume()
        for spool in self.spools.values():
            spool.remove()


class Commands:
    """Those of this cave, newest last."""

    def __init__(self) -> None:
        self.commands: dict[str, Command] = {}
        self.count = 0
        self.folder = f"{RUN}/out"
        os.makedirs(self.folder, mode=0o700, exist_ok=True)

    def trim(self) -> None:
        """Forget the oldest finished commands, beyond their number or their bytes on disk."""
        finished = [c for c in self.commands.values() if not c.running]
        kept = sum(s.kept_bytes for c in finished for s in c.spools.values())
        for command in finished:
            if len(finished) <= MAX_FINISHED and kept <= MAX_KEPT:
                return
            finished = finished[1:]
            kept -= sum(s.kept_bytes for s in command.spools.values())
            command.forget()
            del self.commands[command.id]

    def get(self, name: Any) -> Command:
        command = self.commands.get(str(name))
        if command is None:
            near = ", ".join(list(self.commands)[-5:]) or "none yet"
            raise WardenError(
                "command_not_found", f"no such command: {str(name)[:64]}", f"Newest: {near}."
            )
        return command


def of(warden: Warden) -> Commands:
    """The commands of a cave."""
    if warden.commands is None:
        warden.commands = Commands()
    return warden.commands

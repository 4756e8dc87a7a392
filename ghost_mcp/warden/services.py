"""Services: programs that the cave keeps running for whoever dials them, one of each name for all hubs.

A service is started when somebody asks for it, by this one process, so that two hubs never start it twice.
It is ready when its socket answers as declared; started again when it ends by itself; stopped when nobody
has been connected to it for its idle time. All it wrote is kept like any command's.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from time import monotonic

from . import launching, processes, program
from .heads import seconds
from .peers import WardenError
from .probing import Probe
from .streams import write_new

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .commands import Command
    from .loop import Timer
    from .peers import Stream
    from .program import Warden

MAX_SERVICES = 32
PROBE_S = 0.05  # between two looks at a socket that does not answer yet
STOP_S = 3.0
# Ends that come so soon after each other are a fault: after MAX_ENDS of them it is not started again.
STEADY_S, MAX_ENDS = 60.0, 4
PAUSE_S = 0.25
LOG = 3000

STARTING, READY, WAITING, FAILED = "starting", "ready", "waiting", "failed"


class Service:
    """One service from its first start on, until it is stopped."""

    def __init__(self, warden: Warden, name: str, head: dict[str, Any], body: bytes) -> None:
        self.warden, self.name = warden, name
        self.state = STARTING
        self.restarts = 0
        self.uses = 0
        self.argv = [str(word) for word in head.get("argv") or ()]
        self.cwd = head.get("cwd")
        self.env = {str(k): str(v) for k, v in (head.get("env") or {}).items()}
        self.ready_s = seconds(head, "ready_s") or 30.0
        self.idle_s = seconds(head, "idle_s")
        self.ask = str(head.get("ask") or "").encode()
        self.expect = str(head.get("expect") or "").encode()
        self.port = _port(head.get("port"))
        self.path = "" if self.port else f"{_folder()}/{name}.sock"
        self.env |= {"GHOST_PORT": str(self.port)} if self.port else {"GHOST_SOCKET": self.path}
        if body:
            self.env["GHOST_PROGRAM"] = written = f"{_folder()}/{name}.program"
            _unlink(written)
            write_new(written, body)
        self.waiters: list[Stream] = []
        self._command: Command | None = None
        self._began = self._used = monotonic()
        self._ends = 0
        self._timer: Timer | None = None
        self._idle: Timer | None = None
        self._probe: Probe | None = None

    # --- starting --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the program and look until it answers."""
        self.state, self._began = STARTING, monotonic()
        if self.path:
            _unlink(self.path)
        head = {"argv": self.argv, "env": self.env, "cwd": self.cwd}
        self._command = command = launching.launch(self.warden, None, head)
        command.waiters.append(lambda: self._ended(command))
        self._look()

    def _look(self) -> None:
        target = self.port or self.path
        self._probe = Probe(self.warden, target, self._looked, ask=self.ask, expect=self.expect)

    def _looked(self, answered: bool) -> None:
        self._probe = None
        if answered:
            self.state, self._used = READY, monotonic()
            self._answer()
            _of(self.warden).tell(self.name)
            self._rest()
        elif monotonic() - self._began > self.ready_s:
            self._fail(f"it did not answer within {self.ready_s:g} s")
        else:
            self._timer = self.warden.after(PROBE_S, self._look)

    def _ended(self, command: Command) -> None:
        """Its main program has ended by itself: the rest of it goes too, and it starts anew."""
        if self._command is not command:
            return
        if command.tree is not None:
            command.tree.kill()
        self._quiet()
        steady = monotonic() - self._began > STEADY_S
        self._ends = 1 if steady else self._ends + 1
        if self._ends >= MAX_ENDS:
            self._fail(f"it ended with exit code {command.exit_code}, {self._ends} times")
            return
        self.state = WAITING
        self.restarts += 1
        self._timer = self.warden.after(PAUSE_S * 2**self._ends, self._again)

    def _again(self) -> None:
        try:
            self.begin()
        except (OSError, WardenError) as exc:
            self._fail(str(exc))

    def _fail(self, why: str) -> None:
        log = self.log()
        self._end()
        self.state = FAILED
        data = {"log": log} if log else None
        last = log.strip().rpartition("\n")[2][:300]
        hint = f"The last it said: {last}" if last else ""
        waiters, self.waiters = self.waiters, []
        for stream in waiters:
            stream.fail(WardenError("service_failed", f"service {self.name}: {why}", hint, data))

    def _answer(self) -> None:
        waiters, self.waiters = self.waiters, []
        for stream in waiters:
            stream.close(self.describe())

    # --- use and idleness ------------------------------------------------------------------------

    def use(self) -> Callable[[], None]:
        """Count one more that uses it; to be told, once, when it does so no more."""
        self.uses += 1
        done = False

        def leave() -> None:
            nonlocal done
            if not done:
                done = True
                self.uses -= 1
                self._used = monotonic()
                self._rest()

        return leave

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self.idle_s is not None and not self.uses and self.state == READY:
            left = self._used + self.idle_s - monotonic()
            if left <= 0:
                self.warden.log(f"service {self.name} was idle")
                _of(self.warden).stop(self)
            else:
                self._idle = self.warden.after(left, self._rest)

    # --- ending ----------------------------------------------------------------------------------

    def close(self) -> Command | None:
        """End it and all it started: politely, then not. Returns its program."""
        for stream in self.waiters:
            stream.fail(WardenError("conflict", f"service {self.name} was stopped"))
        self.waiters = []
        return self._end()

    def _end(self) -> Command | None:
        self._quiet()
        command, self._command = self._command, None
        if command is not None and command.running:
            command.signal(_signal.SIGTERM)
            self.warden.after(STOP_S, lambda: _kill(command))
        return command

    def _quiet(self) -> None:
        for timer in (self._timer, self._idle):
            if timer is not None:
                timer.cancel()
        if self._probe is not None:
            self._probe.close()
        self._timer = self._idle = self._probe = None

    # --- telling ---------------------------------------------------------------------------------

    def log(self) -> str:
        """The end of what it wrote."""
        if self._command is None:
            return ""
        said = b""
        for spool in self._command.spools.values():
            said += spool.read(max(0, spool.size - LOG), LOG)[1]
        return said[-LOG:].decode("utf-8", "replace")

    def describe(self) -> dict[str, Any]:
        command = self._command
        pids = command.tree.pids() if command is not None and command.tree is not None else []
        where: dict[str, Any] = {"port": self.port} if self.port else {"path": self.path}
        return {
            "name": self.name,
            "state": self.state,
            "uses": self.uses,
            "restarts": self.restarts,
            "age_s": round(monotonic() - self._began, 3),
            "pids": len(pids),
            "rss_bytes": sum(map(_rss, pids)),
            "command": command.id if command is not None else None,
            **where,
        }


class Services:
    """The services of this cave by name."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden
        self._by_name: dict[str, Service] = {}
        self._awaiting: dict[str, list[Stream]] = {}

    def start(self, name: str, stream: Stream, head: dict[str, Any], body: bytes) -> None:
        """Answer when it is ready; start it when it is not there, or has failed."""
        service = self._by_name.get(name)
        if service is not None and service.state == FAILED:
            service = None
        if service is None:
            if len(self._by_name) >= MAX_SERVICES and name not in self._by_name:
                raise WardenError("limit_exceeded", f"{MAX_SERVICES} services are running")
            if missing := _missing(stream, head):
                what = ", ".join(missing)[:300]
                raise WardenError("service_missing", f"this cave has no {what}")
            service = Service(self._warden, name, head, body)
            service.begin()
            self._by_name[name] = service
        if service.state == READY:
            stream.close(service.describe())
            return
        waiters = service.waiters
        waiters.append(stream)
        stream.on_reset = lambda: waiters.remove(stream) if stream in waiters else None

    def get(self, name: str) -> Service:
        service = self._by_name.get(name)
        if service is None:
            raise WardenError("service_not_found", f"service {name} is not running", "Start it.")
        return service

    def wait(self, name: str, stream: Stream) -> None:
        """A NOTE once it is ready, whoever starts it. Until then the cave may be idle all the same."""
        service = self._by_name.get(name)
        if service is not None and service.state == READY:
            stream.note({})
            return
        awaiting = self._awaiting.setdefault(name, [])
        awaiting.append(stream)
        stream.passive = True
        stream.on_reset = lambda: awaiting.remove(stream) if stream in awaiting else None

    def tell(self, name: str) -> None:
        """It is ready: who waited for that may know."""
        awaiting = self._awaiting.pop(name, [])
        while awaiting:
            awaiting.pop().note({})

    def stop(self, service: Service) -> Command | None:
        """End it; returns its program, which may take a while to go."""
        del self._by_name[service.name]
        return service.close()

    def all(self) -> list[Service]:
        return list(self._by_name.values())

    def used(self, target: Any) -> Callable[[], None] | None:
        """Somebody has connected to a socket: count it, when it is a service's."""
        for service in self._by_name.values():
            if target == service.path or (service.port and target == service.port):
                return service.use()
        return None


def control(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{action: start|stop|use|await|log, name, ...}``.

    start: ``{argv, env, cwd, port, ask, expect, ready_s, idle_s, programs}``, and a program as the body, whose path it
    finds in GHOST_PROGRAM; it listens on the path GHOST_SOCKET, or on its port. use: a NOTE, and it is in use
    until the stream ends. await: a NOTE when it is ready, which may be never.
    """
    services, action = _of(stream.peer.warden), head.get("action")
    name = _name(head.get("name"))
    if action == "start":
        services.start(name, stream, head, body)
    elif action == "stop":
        ending = services.stop(services.get(name))
        if ending is not None and ending.running:
            ending.waiters.append(lambda: stream.close({}))
        else:
            stream.close({})
    elif action == "log":
        stream.close({}, services.get(name).log().encode())
    elif action == "use":
        stream.on_reset = services.get(name).use()
        stream.note({})
    elif action == "await":
        services.wait(name, stream)
    else:
        raise WardenError("invalid_argument", f"cannot {str(action)[:64]} a service")


def look(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{programs: {name: [...]}}``: what runs, and what of each list (names, or paths of files) is not here.

    To look is not to use the cave.
    """
    wanted = head.get("programs") or {}
    missing = {str(name): _missing(stream, {"programs": wanted[name]}) for name in wanted}
    services = [service.describe() for service in _of(stream.peer.warden).all()]
    stream.close({"services": services, "missing": missing})


def _of(warden: Warden) -> Services:
    if warden.services is None:
        warden.services = Services(warden)
    return warden.services


def _name(given: Any) -> str:
    name = str(given)
    if not name.replace("-", "").isalnum() or len(name) > 40 or not name.isascii():
        raise WardenError(
            "invalid_argument", f"not a service's name: {name[:64]}", "Use letters, digits and -."
        )
    return name


def _port(given: Any) -> int:
    if given is None:
        return 0
    if type(given) is not int or not 0 < given < 65536:
        raise WardenError("invalid_argument", f"not a port: {str(given)[:40]}")
    return given


def _missing(stream: Stream, head: dict[str, Any]) -> list[str]:
    seen = launching.environment(stream.peer.warden, {}, "")
    names = [str(name) for name in head.get("programs") or ()]
    return [name for name in names[:64] if not _there(name, seen)]


def _there(name: str, env: dict[str, str]) -> bool:
    if name.startswith("/"):
        return os.path.exists(name)
    try:
        processes.find_program(name, env, "/")
    except WardenError:
        return False
    return True


def _kill(command: Command) -> None:
    command.kill()
    if command.tree is not None:
        command.tree.kill()  # what has outlived its main program


def _folder() -> str:
    folder = f"{program.RUN}/service"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _rss(pid: int) -> int:
    """Resident memory; what processes share counts for each (proc_pid_statm(5))."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0

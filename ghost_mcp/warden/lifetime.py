"""Operations on the cave itself: what its maker configures, and what it uses."""

from __future__ import annotations

import os
from time import monotonic

from .program import HOME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .peers import Stream

_RLIMITS = {
    "nproc": 6,
    "nofile": 7,
    "data": 2,
    "core": 4,
}  # resource numbers of Linux's generic ABI


def configure(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{env, secrets, deadline_s, idle_s, lonely_s, hold, release, rlimits, egress, direct}``: sets what is given.

    ``secrets`` maps a name to the size of its value, the values stand in the body in that order; they stay in
    this process and in the environment of the programs it starts. With ``egress`` the cave gets its way out,
    see ``egress``; names that are ``direct`` lead to neighbours, without it. Answers what a hub that comes now is greeted with.
    """
    warden = stream.peer.warden
    if head.get("egress"):
        from . import egress

        warden.env.update(egress.opened(warden).variables(head.get("direct", ())))
    warden.env.update(head.get("env", {}))
    for name, size in head.get("secrets", {}).items():
        warden.secrets[name], body = body[:size], body[size:]
        warden.env[name] = os.fsdecode(warden.secrets[name])
    if head.get("rlimits"):
        _limit(head["rlimits"])
    if head.get("release"):
        warden.release()
    if head.get("hold"):
        warden.hold()
    warden.set_lifetime(
        deadline_s=head.get("deadline_s"), idle_s=head.get("idle_s"), lonely_s=head.get("lonely_s")
    )
    stream.close(warden.greeting())
    warden.after(0, _prepare)


def secrets(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """Answer another hub of this cave what it was configured with, in the form of configure()."""
    known = stream.peer.warden.secrets
    stream.close(
        {"secrets": {name: len(value) for name, value in known.items()}}, b"".join(known.values())
    )


def hold(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{}``: the cave is still wanted; from now on it ends ``lonely_s`` after the last time this was said."""
    stream.peer.warden.hold()
    stream.close({})


def _prepare() -> None:
    """Load what the first program needs while the hub is still busy with our answer."""
    from . import execution  # noqa: F401


def _limit(limits: dict[str, int]) -> None:
    import resource

    for name, value in limits.items():
        hard = resource.getrlimit(_RLIMITS[name])[1]
        value = value if hard < 0 else min(value, hard)
        resource.setrlimit(_RLIMITS[name], (value, value))


def stats(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """Processes, resident memory and uptime as seen inside; the disk use of the cave's own folders."""
    page = os.sysconf("SC_PAGE_SIZE")
    pids = rss = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/statm", "rb") as file:
                    rss += int(file.read().split()[1]) * page
            except (OSError, IndexError):
                continue
            pids += 1
    disks = {}
    for path in (HOME, "/tmp"):
        if os.path.isdir(path):
            info = os.statvfs(path)
            disks[path] = {
                "size": info.f_frsize * info.f_blocks,
                "free": info.f_frsize * info.f_bavail,
            }
    warden = stream.peer.warden
    left = None if warden.deadline is None else max(0.0, warden.deadline - monotonic())
    stream.close(
        {
            "pids": pids,
            "rss_bytes": rss,
            "uptime_s": monotonic() - warden.boot,
            "left_s": left,
            "disks": disks,
        }
    )

"""``ghost info`` for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ghost_mcp.cli.output import age
from ghost_mcp.reply import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ghost_mcp.cli.output import Output
    from ghost_mcp.services import ServiceStatus
    from ghost_mcp.spec import CaveInfo, Usage

__all__ = ["describe"]


def describe(info: CaveInfo, usage: Usage, services: Sequence[ServiceStatus], out: Output) -> None:
    """Name, life, limits beside what is used, settings, services, and what is really enforced."""
    spec, now = info.spec, time.time()
    out.line(f"{info.full_name}  {info.state.value}  {info.backend}  {info.id}")
    out.line(f"  made {age(now - info.created_at)} ago{_ends(info, now)}")
    facts = [
        ("memory", _of(usage.memory_bytes, spec.limits.memory_bytes)),
        ("processes", _count(usage.pids, spec.limits.pids)),
        ("cpu", _cpu(usage.cpu_s, spec.limits.cpus)),
        ("disk", _of(usage.disk_bytes, spec.limits.disk_bytes)),
        ("gpus", spec.gpus or ""),
        ("network", " ".join((spec.network.mode, *spec.network.allow))),
        ("image", spec.image or "the backend's own"),
        ("workspace", spec.workspace or "its own"),
        ("env", ", ".join(spec.env)),
        ("secrets", ", ".join(spec.secrets)),
        ("labels", ", ".join(f"{key}={value}" for key, value in spec.labels.items())),
    ]
    for name, text in facts:
        if text:
            out.line(f"  {name:<10} {text}")
    if services:
        out.line("  services:")
        for one in services:
            used = size_text(one.memory_bytes) if one.memory_bytes else ""
            out.line(f"    {one.name:<12} {one.state:<9} {used:<10} {one.url}".rstrip())
    out.line("  enforced:")
    for name, line in info.assurance.items():
        out.line(f"    {'yes' if line.enforced else 'no ':<4} {name:<10} {line.how}")


def _ends(info: CaveInfo, now: float) -> str:
    ends = []
    if info.deadline_at is not None:
        ends.append(f"ends in {age(info.deadline_at - now)}")
    if info.spec.idle_timeout_s is not None:
        ends.append(f"ends after {age(info.spec.idle_timeout_s)} without a call")
    if info.spec.ephemeral:
        ends.append("ends with the process that made it")
    return "".join(f", {text}" for text in ends)


def _of(used: int | None, limit: int | None) -> str:
    here = "" if used is None else f"{size_text(used)} of "
    return f"{here}{'no limit' if limit is None else f'at most {size_text(limit)}'}"


def _count(used: int | None, limit: int | None) -> str:
    here = "" if used is None else f"{used} of "
    return f"{here}{'no limit' if limit is None else f'at most {limit}'}"


def _cpu(used_s: float | None, limit: float | None) -> str:
    here = "" if used_s is None else f"{used_s:.2f} s used, "
    return f"{here}{'no limit' if limit is None else f'at most {limit:g} processors'}"

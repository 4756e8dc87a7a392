# What a warden says of a command is hostile until it is a Report. Only this file turns one into the other.
"""A command's state and the excerpts of its output, checked and made fit to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ghost_mcp.errors import ProtocolFailure
from ghost_mcp.outputs import Output, clean, decode, looks_binary, whole_number
from ghost_mcp.reply import Handle, size_text

if TYPE_CHECKING:
    from collections.abc import Mapping

CHANNELS = {"1": "stdout", "2": "stderr"}
BINARY = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """The new part of one channel: all of it in ``head``, or its beginning and its end."""

    start: int
    size: int
    head: bytes
    tail: bytes
    not_kept: int
    lost: bool

    @property
    def binary(self) -> bool:
        return looks_binary(decode(self.head, begins=self.start == 0, ends=False))

    @property
    def whole(self) -> bool:
        """Whether all that is new is to be seen in :meth:`text`."""
        return not self.tail and not self.binary

    def text(self, uri: str, *, running: bool) -> str:
        """What a reader sees; the rest is to be had at ``uri``."""
        if self.binary:
            return f"[binary data, {size_text(self.size)}: {uri}]"
        head = decode(self.head, begins=self.start == 0, ends=not self.tail and not running)
        if not self.tail:
            return head
        left_out = self.size - self.start - len(self.head) - len(self.tail)
        gone = f", {self.not_kept} of them not kept" if self.not_kept else ""
        between = f"\n[... {left_out} bytes left out{gone}; all: {uri} ...]\n"
        return head + between + decode(self.tail, begins=False, ends=not running)

    def last_line(self) -> str:
        lines = decode(self.tail or self.head, begins=False, ends=False).strip().splitlines()
        return lines[-1][:200] if lines else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A command as it is now. ``exit_code`` is None while it runs."""

    id: str
    running: bool
    exit_code: int | None
    timed_out: bool
    duration_s: float
    session: str
    cwd: str
    note: str
    outputs: Mapping[str, Excerpt]

    @classmethod
    def parse(cls, head: Mapping[str, Any], body: bytes) -> Self:
        """Raises ProtocolFailure for what no warden answers."""
        running = head.get("running") is True
        try:
            return cls(
                id=clean(head["id"], 20),
                running=running,
                exit_code=None if running else whole_number(head, "exit_code"),
                timed_out=head.get("timed_out") is True,
                duration_s=float(head["duration_s"]),
                session=clean(head.get("session", ""), 64),
                cwd=clean(head.get("cwd", "")),
                note=clean(head.get("note", ""), 300),
                outputs=_excerpts(head["output"], body),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ProtocolFailure("the warden's report of a command cannot be read") from exc

    @property
    def sizes(self) -> dict[str, int]:
        """How much there is of each channel, to ask for what comes after."""
        return {channel: excerpt.size for channel, excerpt in self.outputs.items()}

    def last_line(self) -> str:
        """The newest line of output, for a progress message."""
        for channel in ("1", "2"):
            if channel in self.outputs and (line := self.outputs[channel].last_line()):
                return line
        return ""

    def shown(self, cave: str) -> tuple[dict[str, Any], list[Handle]]:
        """``{stdout, stderr, stdout_size, stdout_uri, ...}`` and the handles of what is not all there."""
        data: dict[str, Any] = {}
        handles = []
        for channel, excerpt in self.outputs.items():
            name = CHANNELS[channel]
            uri = Output.of_channel(cave, self.id, int(channel)).uri
            data[name] = excerpt.text(uri, running=self.running)
            if not excerpt.whole:
                data |= {f"{name}_size": excerpt.size, f"{name}_uri": uri}
                handles.append(
                    Handle(
                        uri=uri,
                        name=f"{self.id}-{name}",
                        size_bytes=excerpt.size,
                        mime_type=BINARY if excerpt.binary else "text/plain",
                    )
                )
        return data, handles


def _excerpts(output: Mapping[str, Mapping[str, Any]], body: bytes) -> dict[str, Excerpt]:
    found = {}
    for channel, told in output.items():
        if channel not in CHANNELS:
            continue
        first, second = whole_number(told, "head"), whole_number(told, "tail")
        gap = told.get("gap") or (0, 0)
        found[channel] = Excerpt(
            start=whole_number(told, "from"),
            size=whole_number(told, "size"),
            head=body[:first],
            tail=body[first : first + second],
            not_kept=max(0, int(gap[1]) - int(gap[0])),
            lost=told.get("lost") is True,
        )
        body = body[first + second :]
    return found

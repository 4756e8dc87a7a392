# Only this file decides what one conversion may use. It runs in a process of its own, which ends with it.
"""One conversion: read the request, convert, answer. What goes wrong ends this process, or is an answer."""

from __future__ import annotations

import resource
import signal
from typing import TYPE_CHECKING, Any

from . import archives, formats, markdown, pictures, plain, wire
from .refusal import Refused, damaged, too_large

if TYPE_CHECKING:
    import mmap
    import socket

    from .formats import Document

MAX_MEMORY = 1 << 30
MAX_FILES = 64
MAX_PDF_PAGES = 2_000
# What a document earns beyond MIN_CPU_S: real ones need far less.
CPU_S_PER_MIB, CPU_S_PER_PAGE = 2.0, 0.3
ANSWER_S = 60


def limit() -> None:
    """Bounds that hold from the first byte on. No process can be started, no file be written."""
    for what, value in (
        (resource.RLIMIT_AS, MAX_MEMORY),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))
    _grant(wire.MIN_CPU_S)


def _grant(cpu_s: float) -> None:
    """So much processor time from the start on, and twice as much by the clock from now on."""
    soft = int(min(cpu_s, wire.MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CPU, (soft, wire.MAX_CPU_S + 2))
    signal.setitimer(signal.ITIMER_REAL, 2 * soft)


def run(sock: socket.socket, answering: mmap.mmap) -> None:
    """Serve one request. ``answering`` is set, for the parent to see, before the first byte of the answer."""
    head, data = _receive(sock)
    try:
        answer, payload = _work(head, data)
    except Refused as exc:
        answer, payload = _refusal(exc), b""
    except MemoryError:
        answer, payload = _refusal(too_large("the conversion needs more than 1 GiB of memory")), b""
    except Exception as exc:  # noqa: BLE001  (whatever a parser raises is a fact about the document)
        why = " ".join(f"{type(exc).__name__}: {exc}".split())
        kind = head.get("name", "").rpartition(".")[2][:20].upper() or "readable"
        answer, payload = _refusal(damaged(kind, why)), b""
    _grant(wire.MAX_CPU_S)
    signal.setitimer(signal.ITIMER_REAL, ANSWER_S)
    answering[0] = 1
    sock.sendall(wire.pack({**answer, "size": len(payload)}))
    sock.sendall(payload)


def _refusal(exc: Refused) -> dict[str, Any]:
    return {"ok": False, "code": exc.code, "message": exc.message[:1000], "hint": exc.hint}


def _receive(sock: socket.socket) -> tuple[dict[str, Any], bytes]:
    size = wire.head_size(_read(sock, wire.PREFIX))
    head = wire.unpack(_read(sock, size), wire.MAX_DOCUMENT)
    return head, _read(sock, head["size"])


def _read(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        if not count:
            raise SystemExit  # the hub has given the request up
        view = view[count:]
    return bytes(data)


def _work(head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    document = formats.recognize(data, head["name"], head["media_type"], head["charset"])
    del data
    _admit(document, head["op"])
    answer, payload = _OPERATIONS[head["op"]](document, head)
    if len(payload) > wire.MAX_ANSWER:
        raise too_large(f"the result has more than {wire.MAX_ANSWER >> 20} MiB")
    return {"ok": True, "format": document.format, **answer}, payload


def _admit(document: Document, op: str) -> None:
    """Refuse what cannot be converted in bearable time, and grant the rest what it may need."""
    size = len(document.data)
    if document.format in ("docx", "pptx", "xlsx", "epub"):
        size = archives.check(document.data)
    earned = wire.MIN_CPU_S + CPU_S_PER_MIB * size / (1 << 20)
    if document.format == "pdf":
        pages = plain.sections(document)[0]
        if op == "convert" and pages > MAX_PDF_PAGES:
            raise Refused(
                "too_large",
                f"the PDF has {pages} pages; {MAX_PDF_PAGES} can be converted at once",
                "Take its text page by page: extract_text with pages.",
            )
        earned = wire.MIN_CPU_S + CPU_S_PER_PAGE * pages
    _grant(earned)


def _convert(document: Document, head: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """``{}``: the payload is Markdown; the head has its length in characters and the title."""
    text, title = markdown.convert(document)
    return {"title": title, "length": len(text)}, text.encode("utf-8", "replace")


def _text(document: Document, head: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """``{first, last, start, limit}``: the payload is ``limit`` characters from ``start`` on of the sections from
    ``first`` to ``last`` (from 1; 0 is open); the head has their length and how many sections there are."""
    count, section = plain.sections(document)
    first, last = head["first"] or 1, min(head["last"] or count, count)
    if count and not first <= last:
        raise Refused("invalid_argument", f"pages go from 1 to {count}")
    text = "\n\n".join(section(number) for number in range(first - 1, last))
    excerpt = text[head["start"] : head["start"] + head["limit"]]
    return {"pages": count, "length": len(text)}, excerpt.encode("utf-8", "replace")


def _pictures(document: Document, head: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """``{limit}``: the payload is the pictures one after the other, ``images`` in the head describes them."""
    found, count = pictures.pictures(document, head["limit"], wire.MAX_ANSWER)
    described = [
        {"size": len(p.data), "format": p.format, "width": p.width, "height": p.height}
        | {"source": p.source[:100]}
        for p in found
    ]
    return {"found": count, "images": described}, b"".join(p.data for p in found)


_OPERATIONS = {"convert": _convert, "text": _text, "pictures": _pictures}

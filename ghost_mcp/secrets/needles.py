# Only this file knows in which forms a secret is looked for.
"""From a value to the byte strings that would give it away: itself, and how programs write it."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

__all__ = ["LEAST_VALUE_BYTES", "needles"]

#: A shorter value is not looked for: it would be found in what has nothing to do with it.
LEAST_VALUE_BYTES = 6
_LEAST_LINE_BYTES = 8
# A shorter one may be a word, which in small letters is in many a text.
_LEAST_LOWERED_BYTES = 16
# A longer needle is looked for in parts, so that what has to be held back of a stream stays small.
_PART_BYTES = 1024
# What base64(1), openssl and xxd break their lines at.
_BREAKS = (76, 64, 60)
# Shorter ends of such lines would be found in any digest.
_LEAST_PIECE = 24
_UNRESERVED = "-_.!~*'()"  # of JavaScript's encodeURIComponent, besides letters and digits


def needles(values: Mapping[str, bytes]) -> dict[bytes, str]:
    """What to look for, and the name of the secret it tells of."""
    found: dict[bytes, str] = {}
    for name, value in values.items():
        for form in _forms(value):
            for part in _parts(form):
                if len(part) >= LEAST_VALUE_BYTES:
                    found.setdefault(part, name)
    return found


def _forms(value: bytes) -> Iterator[bytes]:
    """Space around a value is often lost, and looked away from: the rest is as secret."""
    core = value.strip()
    if len(core) < LEAST_VALUE_BYTES:
        return
    yield core
    if len(core) >= _LEAST_LOWERED_BYTES:  # as names of hosts are written down
        yield core.lower()
    if b"\n" in core:  # as a terminal shows it, and line by line, as searching and numbering do
        yield core.replace(b"\n", b"\r\n")
        for line in core.splitlines():
            if len(line.strip()) >= _LEAST_LINE_BYTES:
                yield line.strip()
    yield from _broken(core.hex().encode())
    yield from _broken(core.hex().upper().encode())
    for pad in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield from _broken(_middle(encode(b"\0" * pad + core), pad, len(core)))
    yield from _escaped(core)


def _middle(encoded: bytes, pad: int, size: int) -> bytes:
    """The characters that only the value decides, ``pad`` bytes being before it."""
    return encoded[(0, 2, 3)[pad] : (pad + size) * 8 // 6]


def _broken(encoded: bytes) -> Iterator[bytes]:
    """In one line, or in several of the usual widths."""
    yield encoded
    for width in _BREAKS:
        if len(encoded) > width:
            for at in range(0, len(encoded) - _LEAST_PIECE, width):
                yield encoded[at : at + width]


def _escaped(core: bytes) -> Iterator[bytes]:
    """In a URL, in JSON, in Markdown, HTML and source text; with what is no UTF-8 replaced, as decoding shows it."""
    for safe in ("", "/", _UNRESERVED):
        upper = quote(core, safe=safe)
        yield upper.encode()
        yield _lower_escapes(upper).encode()
    yield quote_plus(core).encode()
    text = core.decode("utf-8", "replace")
    yield text.encode()
    for plain in (True, False):
        inner = json.dumps(text, ensure_ascii=plain)[1:-1]
        yield inner.encode()
        yield inner.replace("/", "\\/").encode()
    yield text.replace("_", "\\_").replace("*", "\\*").encode()  # Markdown
    for quotes in (True, False):
        yield html.escape(text, quote=quotes).encode()
    yield repr(text)[1:-1].encode()
    yield repr(core)[2:-1].encode()
    if "\ufffd" in text:  # file names and arguments keep what is no UTF-8 so
        kept = core.decode("utf-8", "surrogateescape")
        yield kept.encode("utf-8", "surrogatepass")
        yield json.dumps(kept)[1:-1].encode()


def _lower_escapes(text: str) -> str:
    head, *rest = text.split("%")
    return "%".join([head, *(part[:2].lower() + part[2:] for part in rest)])


def _parts(form: bytes) -> Iterator[bytes]:
    """The whole, or parts of it of which none is short."""
    count = max(1, len(form) // _PART_BYTES)
    size = -(-len(form) // count)
    for at in range(0, len(form), size):
        yield form[at : at + size]

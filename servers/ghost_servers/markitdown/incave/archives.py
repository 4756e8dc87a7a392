# Only this file decides which ZIP containers are opened. What a container says about itself is not believed.
"""The guard before every ZIP-based document: number of entries, sizes as declared, sizes as they really are."""

from __future__ import annotations

import zipfile
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

from defusedxml import ElementTree

from .refusal import damaged, too_large

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_ENTRIES = 10_000
MAX_EXPANDED = 256 << 20
# Beyond SMALL bytes an expansion to more than MAX_RATIO times the container is a bomb, not a document.
SMALL, MAX_RATIO = 16 << 20, 200
_ENTRY = b"PK\x01\x02"
_READ = 1 << 20


def opened(data: bytes) -> zipfile.ZipFile:
    """The container, when its directory has a bearable size. Raises Refused."""
    # Each entry of the directory has this mark: so many there are at most, whatever the directory says of itself.
    if data.count(_ENTRY) > MAX_ENTRIES:
        raise too_large(f"the container has more than {MAX_ENTRIES} entries")
    try:
        return zipfile.ZipFile(BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as exc:
        raise damaged("ZIP-based", str(exc)) from exc


def names(data: bytes) -> set[str]:
    with opened(data) as container:
        return set(container.namelist())


def elements(container: zipfile.ZipFile, part: str, name: str) -> list[Element]:
    """The elements of that name, of any namespace, in a part; none when there is no such part."""
    if part not in container.NameToInfo:
        return []
    root = ElementTree.fromstring(container.read(part))
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == name]


def check(data: bytes) -> int:
    """Expand everything once into nothing; returns the bytes it has. Raises Refused."""
    limit = max(SMALL, min(MAX_EXPANDED, len(data) * MAX_RATIO))
    with opened(data) as container:
        entries = container.infolist()
        if sum(entry.file_size for entry in entries) > limit:
            raise too_large(f"the container would expand to more than {limit >> 20} MiB")
        return sum(_expand(container, entry, limit) for entry in entries)


def _expand(container: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> int:
    # The other methods expand whole blocks at once, and no document format allows them.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise damaged("ZIP-based", "an entry with a compression that documents never have")
    try:
        file = container.open(entry)
    except RuntimeError as exc:
        raise damaged("ZIP-based", "it is encrypted") from exc
    except (zipfile.BadZipFile, NotImplementedError):
        return 0  # an entry that cannot be opened expands to nothing; whoever needs it will say so
    size = 0
    try:
        with file:
            while piece := file.read(_READ):
                size += len(piece)
                if size > limit:
                    raise too_large(f"the container expands to more than {limit >> 20} MiB")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as exc:
        raise damaged("ZIP-based", str(exc)) from exc
    return size

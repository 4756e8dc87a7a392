# Only this file decides which of markitdown's converters run: those for files, called directly.
"""Documents to Markdown.

markitdown's own front door is not used: it guesses formats with a neural model whose threads do not survive a
fork, and it fetches URLs, runs exiftool and ffmpeg, calls language models and loads plugins. Its converters
for documents do none of that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from markitdown import StreamInfo, converters

if TYPE_CHECKING:
    from markitdown import DocumentConverter

    from .formats import Document

CONVERTERS: Mapping[str, type[DocumentConverter]] = MappingProxyType(
    {
        "pdf": converters.PdfConverter,
        "docx": converters.DocxConverter,
        "pptx": converters.PptxConverter,
        "xlsx": converters.XlsxConverter,
        "xls": converters.XlsConverter,
        "msg": converters.OutlookMsgConverter,
        "epub": converters.EpubConverter,
        "html": converters.HtmlConverter,
        "rss": converters.RssConverter,
        "csv": converters.CsvConverter,
        "ipynb": converters.IpynbConverter,
        "text": converters.PlainTextConverter,
    }
)
MAX_TITLE = 300


def convert(document: Document) -> tuple[str, str]:
    """Markdown, and the title where the document has one."""
    info = StreamInfo(extension=f".{document.format}", charset="utf-8")
    result = CONVERTERS[document.format]().convert(document.open(), info)
    # As markitdown itself ends each conversion.
    lines = (line.rstrip() for line in re.split(r"\r?\n", result.markdown))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
    return text, " ".join((result.title or "").split())[:MAX_TITLE]

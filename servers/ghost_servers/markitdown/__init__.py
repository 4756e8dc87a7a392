"""The markitdown server: documents to Markdown, to plain text, and the pictures in them."""

from __future__ import annotations

from ghost_mcp.tool import Toolset
from ghost_servers.markitdown.tools import convert, extract_images, extract_text

__all__ = ["TOOLSET"]

TOOLSET = Toolset(
    name="markitdown",
    instructions=(
        "Reads documents that lie in the cave: PDF, DOCX, PPTX, XLSX, XLS, MSG, EPUB, HTML, CSV, IPYNB, text. "
        "Download what is on the web first."
    ),
    tools=(convert, extract_text, extract_images),
)

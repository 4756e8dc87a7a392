"""What the converter says when it will not, or cannot, convert a document."""

from __future__ import annotations


class Refused(Exception):
    """``code`` is one of Ghost's; ``hint`` says the way out."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


def unsupported(what: str, hint: str = "") -> Refused:
    return Refused("unsupported_format", f"{what} cannot be converted", hint)


def damaged(what: str, why: str = "") -> Refused:
    return Refused(
        "invalid_argument",
        f"not a valid {what} document" + (f": {why[:300]}" if why else ""),
        "Is the file whole? Open it with another program in the cave to see more.",
    )


def too_large(message: str) -> Refused:
    hint = "For a part of a long document use extract_text with pages."
    return Refused("too_large", message, hint)

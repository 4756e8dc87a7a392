"""search: lines that match, in a tree, a file or a command's output."""

from __future__ import annotations

import posixpath
import re
from collections import deque
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from pydantic import Field
from typing_extensions import TypedDict

from ghost_mcp.errors import InvalidArgument, LimitExceeded, NotFound, ProtocolFailure
from ghost_mcp.outputs import Output, clean, is_output, search_output, whole_number
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, tool
from ghost_servers.file import ripgrep
from ghost_servers.file.bounds import within
from ghost_servers.file.ripgrep import Query

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave
    from ghost_servers.file.ripgrep import Line

SEARCHING_S = 20.0
MAX_PATTERN = 10_000
MAX_GLOBS, MAX_GLOB = 100, 1_000
TEXT_CHARS = 7000
# Of a long line so much is shown, and so much of it before the match.
SHOWN, LEAD = 500, 80
_BRACES = re.compile(r"\{([^{}]*)\}")


class Match(TypedDict, total=False):
    path: str
    line: int
    column: int
    text: str
    before: list[str]
    after: list[str]


class SearchResult(TypedDict, total=False):
    matches: list[Match]
    truncated: bool


@tool(title="Search in files", effect="read", result=SearchResult)
async def search(
    call: Call,
    *,
    pattern: str,
    path: Annotated[str, Field(description="Or an output's URI.")] = ".",
    fixed: Annotated[bool, Field(description="Text, not a regex.")] = False,
    ignore_case: bool = False,
    include: Annotated[list[str] | None, Field(description="Globs.")] = None,
    exclude: list[str] | None = None,
    context: Annotated[int, Field(description="Lines around."), within(0, 20)] = 0,
    hidden: bool = False,
    gitignore: bool = True,
    limit: Annotated[int, within(1, 1000)] = 100,
) -> Reply:
    """Find lines in files by regex. To find files by name, use list."""
    if not 0 < len(pattern) <= MAX_PATTERN:
        raise InvalidArgument(f"a pattern has 1 to {MAX_PATTERN} characters")
    query = Query(
        pattern=pattern,
        fixed=fixed,
        ignore_case=ignore_case,
        include=_globs(include or []),
        exclude=_globs(exclude or []),
        context=context,
        hidden=hidden,
        gitignore=gitignore,
        limit=limit,
    )
    found = Found(limit)
    with anyio.move_on_after(SEARCHING_S) as scope:
        await _search(call.cave, query, path, found)
    if scope.cancelled_caught:
        found.why = f"stopped after {SEARCHING_S:g} s"
    return found.reply()


def _globs(given: list[str]) -> tuple[str, ...]:
    """With each ``{a,b}`` made two globs: what searches knows no braces. Raises InvalidArgument."""
    if any(len(glob) > MAX_GLOB for glob in given):
        raise InvalidArgument(f"a glob has at most {MAX_GLOB} characters")
    globs, done = list(given), []
    while globs:
        glob = globs.pop(0)
        found = _BRACES.search(glob)
        if found is None:
            done.append(glob)
        else:
            parts = found[1].split(",")
            globs[:0] = [glob[: found.start()] + part + glob[found.end() :] for part in parts]
        if len(globs) + len(done) > MAX_GLOBS:
            raise InvalidArgument(f"include and exclude take at most {MAX_GLOBS} globs")
    return tuple(done)


async def _search(cave: Cave, query: Query, path: str, found: Found) -> None:
    if is_output(path):
        output = Output.parse(path).of(cave)
        records, answer = await search_output(cave, output, _head(query))
        _take(records, answer, output.uri, found)
        return
    where, _ = await cave.call("stat", {"path": path})
    kind = where.get("type")
    # A link is followed only by the warden, which knows what is no file of the cave.
    if kind in ("file", "directory") and ripgrep.means_the_same(query):
        try:
            await _with_ripgrep(cave, query, str(where.get("path")), kind == "directory", found)
            return
        except NotFound as exc:
            if exc.code != "program_not_found":
                raise
    records, answer = await cave.records("search", {**_head(query), "path": path})
    _take(records, answer, "", found)


def _head(query: Query) -> dict[str, Any]:
    return {
        "pattern": query.pattern,
        "fixed": query.fixed,
        "ignore_case": query.ignore_case,
        "include": list(query.include),
        "exclude": list(query.exclude),
        "before": query.context,
        "after": query.context,
        "hidden": query.hidden,
        "gitignore": query.gitignore,
        "limit": query.limit,
    }


async def _with_ripgrep(cave: Cave, query: Query, path: str, is_folder: bool, found: Found) -> None:
    folder, name = (path, "") if is_folder else posixpath.split(path)
    try:
        async with aclosing(ripgrep.search(cave, query, folder, name)) as lines:
            async for line in lines:
                if not found.line(
                    replace(line, path=_short(f"{folder}/{line.path}")), query.context
                ):
                    return
    except LimitExceeded as exc:
        found.truncated, found.why = True, f"stopped: {exc}"


def _take(records: list[Any], answer: dict[str, Any], uri: str, found: Found) -> None:
    """What the warden found. Its paths are relative to the answer's. Raises ProtocolFailure."""
    try:
        for record in records:
            where = uri or _short(f"{clean(answer['path'])}/{clean(record['path'])}")
            match: dict[str, Any] = {
                "path": where,
                "line": whole_number(record, "line"),
                "column": whole_number(record, "column"),
                "text": clean(record["text"], SHOWN),
            }
            for side in ("before", "after"):
                if record.get(side):
                    match[side] = [clean(text, SHOWN) for text in record[side]]
            if not found.match(match):
                return
    except (KeyError, TypeError) as exc:
        raise ProtocolFailure("the warden's matches cannot be read") from exc
    found.truncated = found.truncated or answer.get("truncated") is True
    if skipped := whole_number(answer, "skipped"):
        found.why = f"{skipped} binary, large or closed files not searched"
    if answer.get("gap") is True:
        found.why = "its middle was not kept; lines are counted without it"


def _short(path: str) -> str:
    """As the file tools take it: what stands in /workspace needs no more than its place there."""
    return path.replace("//", "/").removeprefix("/workspace/")


class Found:
    """The matches so far, and how much more may be told."""

    def __init__(self, limit: int) -> None:
        self.matches: list[dict[str, Any]] = []
        self.truncated = False
        self.why = ""
        self._limit = limit
        self._room = TEXT_CHARS
        self._recent: deque[Line] = deque(maxlen=20)

    def match(self, match: dict[str, Any]) -> bool:
        """Take one more; False when there is no room for it, and so for none that follows."""
        self._room -= sum(
            map(len, [match["text"], *match.get("before", ()), *match.get("after", ())])
        )
        if len(self.matches) >= self._limit or self._room < 0:
            self.truncated = True
            return False
        self._room -= len(match["path"]) + 8
        self.matches.append(match)
        return True

    def line(self, line: Line, context: int) -> bool:
        """Take a line of ripgrep's: a match, or context of the matches around it."""
        path = line.path
        for match in reversed(self.matches):
            if match["path"] != path or line.line - match["line"] > context:
                break
            match.setdefault("after", []).append(line.text[:SHOWN])
            self._room -= min(len(line.text), SHOWN)
        if line.column:
            match = {"path": path, "line": line.line, "column": line.column, "text": _around(line)}
            before = [
                near.text[:SHOWN]
                for near in self._recent
                if near.path == line.path and line.line - near.line <= context
            ]
            if not self.match({**match, "before": before} if before else match):
                return False
        self._recent.append(line)
        return True

    def reply(self) -> Reply:
        count, files = len(self.matches), len({match["path"] for match in self.matches})
        facts = [f"{count} match{'es' * (count != 1)} in {files} file{'s' * (files != 1)}"]
        if self.truncated:
            facts.append("there are more: narrow the pattern, path or include")
        if self.why:
            facts.append(self.why)
        text = "\n".join([*_rendered(self.matches), f"[{'; '.join(facts)}]"])
        return Reply(text=text, data={"matches": self.matches, "truncated": self.truncated})


def _around(line: Line) -> str:
    """The part of a line that its match stands in."""
    at = line.column - 1
    start = 0 if at <= SHOWN - LEAD else at - LEAD
    return line.text[start : start + SHOWN]


def _rendered(matches: list[dict[str, Any]]) -> list[str]:
    """A heading for each file, then ``12: match`` and ``13- context``, each line once."""
    hits = {(match["path"], match["line"]) for match in matches}
    lines: list[str] = []
    path, last = "", 0
    for match in matches:
        if match["path"] != path:
            path, last = match["path"], 0
            lines.append(path)
        texts = [*match.get("before", ()), match["text"], *match.get("after", ())]
        for number, text in enumerate(texts, match["line"] - len(match.get("before", ()))):
            if number > last:
                lines.append(f"{number}{':' if (path, number) in hits else '-'} {text}")
                last = number
    return lines

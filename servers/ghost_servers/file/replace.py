"""replace: change parts of a file, all of them or none."""

from __future__ import annotations

import json
from typing import Annotated, Any

import anyio
from pydantic import Field
from typing_extensions import TypedDict

from ghost_mcp.errors import InvalidArgument, LimitExceeded, TimedOut
from ghost_mcp.outputs import clean, whole_number
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, tool
from ghost_servers.file.bounds import within

EDITING_S = 10.0
MAX_EDITS_BYTES = 3 << 16
MAX_DIFF = 6000


class Edit(TypedDict):
    old: str
    new: str


class ReplaceResult(TypedDict, total=False):
    path: str
    replaced: int
    diff: str
    version: str


@tool(title="Replace text in a file", effect="destroy", result=ReplaceResult)
async def replace(
    call: Call,
    *,
    path: str,
    old: str | None = None,
    new: str | None = None,
    edits: Annotated[list[Edit] | None, Field(description="Several, all or none.")] = None,
    regex: Annotated[bool, Field(description="In new: \\1.")] = False,
    count: Annotated[int | None, Field(description="Only the first N."), within(1)] = None,
    all: Annotated[bool, Field(description="Else one match only.")] = False,
    dry_run: bool = False,
) -> Reply:
    """Replace exact text in a file and get the diff. On an error nothing is changed."""
    if (edits is None) == (old is None) or (old is None) != (new is None):
        raise InvalidArgument("replace: give old and new, or edits")
    if all and count is not None:
        raise InvalidArgument("replace: give all or count, not both")
    wanted = edits if edits is not None else [{"old": old, "new": new}]
    body = json.dumps({"edits": wanted}).encode()
    if len(body) > MAX_EDITS_BYTES:
        raise LimitExceeded("the edits are too long for one call", hint="Write the file instead.")
    head = {"path": path, "regex": regex, "count": count, "all": all}
    try:
        with anyio.fail_after(EDITING_S):
            answer, content = await call.cave.collect("edit", head, body)
    except TimeoutError:
        raise TimedOut(
            f"the edit did not finish in {EDITING_S:g} s", hint="Use a simpler pattern."
        ) from None
    data: dict[str, Any] = {
        "path": clean(answer.get("path")),
        "replaced": whole_number(answer, "replaced"),
        "diff": clean(answer.get("diff"), MAX_DIFF),
        "version": clean(answer.get("version"), 100),
    }
    if not dry_run and data["diff"]:
        # With the version it was made from: an edit of a file that changed meanwhile is refused.
        done = await call.cave.write(path, content, version=data["version"])
        data["version"] = clean(done.get("version"), 100)
    return Reply(text=_text(data, cut=answer.get("cut") is True, dry_run=dry_run), data=data)


def _text(data: dict[str, Any], *, cut: bool, dry_run: bool) -> str:
    notes = [f"{data['replaced']} replaced" + " (dry run: not written)" * dry_run]
    if cut:
        notes.append("the diff goes on")
    if not data["diff"]:
        notes.append("the text is the same as before")
    return f"{data['diff']}[{'; '.join([*notes, 'version ' + data['version']])}]"

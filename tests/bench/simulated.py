# A simulation: what stands here is made up, and says nothing about a real API server's times.
"""An API server in this process: objects of one namespace, patches, lists, watches, a scheduler, pods that start."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

__all__ = ["EXEC_S", "READ_S", "SPACE", "START_S", "WRITE_S", "Server"]

# Medians of a single-node cluster (Kubernetes 1.20, two cores); see configs/kubernetes/SCALING.md.
READ_S, WRITE_S, EXEC_S, START_S = 0.004, 0.007, 0.12, 3.0
# Assumed: an API server's bounds on what it does at once, by their defaults, and a scheduler's usual pace.
READS, WRITES, SCHEDULED_PER_S = 400, 200, 100.0
SPACE = "ghost"
RUNNING = {
    "phase": "Running",
    "containerStatuses": [
        {"name": "cave", "state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}}}
    ],
}

Thing = dict[str, Any]
Answer = tuple[int, Thing]


class Server:
    """The objects of one namespace, and who watches them."""

    def __init__(self, start_s: float = START_S) -> None:
        self._start_s = start_s
        self.requests: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self.bytes_listed = 0
        self._kinds: dict[str, dict[str, Thing]] = {}
        self._version = 0
        self._watches: list[tuple[str, Mapping[str, str], asyncio.Queue[str]]] = []
        self._room = {True: asyncio.Semaphore(READS), False: asyncio.Semaphore(WRITES)}
        self._next_start = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def all(self, kind: str) -> list[Thing]:
        """What there is of a kind, for who looks at the end."""
        return [_copy(thing) for thing in self._kinds.get(kind, {}).values()]

    def lose_node(self, pod: str) -> None:
        """As when a pod's node is gone: the pod is to end, and nobody is there to say that it has."""
        there = self._kinds["pods"][pod]
        there["metadata"]["deletionTimestamp"] = there["metadata"]["creationTimestamp"]
        self._tell("pods", "MODIFIED", there, there)

    def preempt(self, pod: str) -> None:
        """As when a scheduler makes room for others, after the pod's grace."""
        self._tell("pods", "DELETED", self._kinds["pods"].pop(pod), None)

    async def answer(self, method: str, path: str, body: Any, query: Mapping[str, str]) -> Answer:
        if path == "/version":
            return 200, {}
        kind, name = _parts(path)
        reads = method == "GET"
        self.requests[f"{method} {kind}" + ("" if name or not reads else " (list)")] += 1
        async with self._room[reads]:
            await asyncio.sleep(READ_S if reads else WRITE_S)
        there = self._kinds.setdefault(kind, {})
        if method == "POST":
            return self._made(kind, there, _copy(body))
        if name is None:
            return 200, self._list(there, query)
        if name not in there:
            return self._refuse(404)
        if method == "PATCH":
            return self._patched(kind, there, name, body)
        thing = there[name]
        wanted = (body or {}).get("preconditions", {})
        if any(thing["metadata"][key] != value for key, value in wanted.items()):
            return self._refuse(409)
        if method == "DELETE":
            del there[name]
            self._tell(kind, "DELETED", thing, None)
        return 200, _copy(thing)

    def _refuse(self, status: int) -> Answer:
        self.refused[status] += 1
        return status, {"message": "refused"}

    def _made(self, kind: str, there: dict[str, Thing], thing: Thing) -> Answer:
        meta = thing["metadata"]
        if meta["name"] in there:
            return self._refuse(409)
        self._version += 1
        meta |= {
            "uid": f"uid-{self._version}",
            "namespace": SPACE,
            "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        there[meta["name"]] = thing
        thing["status"] = {"phase": "Pending"}
        self._tell(kind, "ADDED", thing, None)
        if kind == "pods":
            task = asyncio.create_task(self._start(thing))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return 201, _copy(thing)

    def _patched(self, kind: str, there: dict[str, Thing], name: str, body: Any) -> Answer:
        before = there[name]
        after = _copy(before)
        if isinstance(body, list):
            if not all(_step(after, one) for one in body):
                return self._refuse(422)
        else:
            version = (body.get("metadata") or {}).get("resourceVersion")
            if version not in (None, before["metadata"]["resourceVersion"]):
                return self._refuse(409)
            _merge(after, body)
        there[name] = after
        self._tell(kind, "MODIFIED", after, before)
        return 200, _copy(after)

    async def _start(self, pod: Thing) -> None:
        """Scheduled one after the other, started all at once: there are nodes enough."""
        now, name = time.monotonic(), pod["metadata"]["name"]
        self._next_start = max(self._next_start, now) + 1 / SCHEDULED_PER_S
        await asyncio.sleep(self._next_start - now)
        self._tell("pods", "MODIFIED", pod, pod)
        await asyncio.sleep(self._start_s)
        if (there := self._kinds["pods"].get(name)) is not None:
            there["status"] = RUNNING
            self._tell("pods", "MODIFIED", there, there)

    def _list(self, there: Mapping[str, Thing], query: Mapping[str, str]) -> Thing:
        found = [one for one in there.values() if _matches(one, query)]
        begin, limit = int(query.get("continue", 0)), int(query.get("limit", len(found)))
        page = found[begin : begin + limit]
        more = str(begin + limit) if begin + limit < len(found) else ""
        meta = {"resourceVersion": str(self._version), "continue": more}
        text = json.dumps({"items": page, "metadata": meta})
        self.bytes_listed += len(text)
        return cast("Thing", json.loads(text))

    def _tell(self, kind: str, what: str, thing: Thing, before: Thing | None) -> None:
        """A watch is told of what comes into its selection and of what leaves it, whatever the change was."""
        self._version += 1
        thing["metadata"]["resourceVersion"] = str(self._version)
        for watched, query, queue in self._watches:
            if watched != kind:
                continue
            now, was = _matches(thing, query), before is not None and _matches(before, query)
            if now or was:
                told = what if what != "MODIFIED" or now == was else "ADDED" if now else "DELETED"
                queue.put_nowait(json.dumps([told, thing]))

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[tuple[str, Thing]]:
        kind = _parts(path)[0]
        self.requests[f"WATCH {kind}"] += 1
        mine: tuple[str, Mapping[str, str], asyncio.Queue[str]] = kind, query, asyncio.Queue()
        self._watches.append(mine)
        try:
            while True:
                what, thing = json.loads(await mine[2].get())
                yield what, thing
        finally:
            self._watches.remove(mine)


def _parts(path: str) -> tuple[str, str | None]:
    found = re.fullmatch(r"/apis?/(?:[a-z0-9.]+/)?v1/namespaces/[^/]+/([a-z]+)(?:/([^/]+))?", path)
    assert found is not None, path
    return found[1], found[2]


def _copy(thing: Any) -> Thing:
    return cast("Thing", json.loads(json.dumps(thing)))


def _matches(thing: Thing, query: Mapping[str, str]) -> bool:
    asked = dict(p.split("=", 1) for p in query.get("labelSelector", "").split(",") if p)
    named = query.get("fieldSelector", "").removeprefix("metadata.name=")
    labels = thing["metadata"].get("labels") or {}
    return asked.items() <= labels.items() and named in ("", thing["metadata"]["name"])


def _step(thing: Thing, step: Mapping[str, Any]) -> bool:
    """One operation of a JSON patch (RFC 6902); whether it could be done."""
    *way, last = (p.replace("~1", "/").replace("~0", "~") for p in step["path"].split("/")[1:])
    for part in way:
        thing = thing.setdefault(part, {})
    if step["op"] == "test":
        return bool(thing.get(last) == step["value"])
    if step["op"] == "add":
        thing[last] = step["value"]
        return True
    if last not in thing:
        return False
    if step["op"] == "remove":
        del thing[last]
    else:
        thing[last] = step["value"]
    return True


def _merge(thing: Thing, patch: Mapping[str, Any]) -> None:
    """A merge patch (RFC 7386)."""
    for key, value in patch.items():
        if isinstance(value, Mapping):
            _merge(thing.setdefault(key, {}), value)
        elif value is None:
            thing.pop(key, None)
        else:
            thing[key] = value

# Errors of the client, of HTTP and of the API server end here: nothing above this file sees one.
"""The connection to a cluster's API server: bounded, counted, and retried where that does no harm."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import anyio.lowlevel
from kubernetes.aio import config as cluster_config
from kubernetes.aio.client import ApiClient, Configuration

from ghost_mcp.backends.kubernetes.answers import document, meant, pause, read, unreachable
from ghost_mcp.backends.kubernetes.stream import PROTOCOLS, ExecStream, Socket, hang_up
from ghost_mcp.errors import BackendUnavailable, CaveGone

if TYPE_CHECKING:
    from ghost_mcp.backends.kubernetes.settings import Settings

__all__ = ["Cluster"]

CALL_S = 30.0
WATCH_S = 240
TRIES = 5
PAUSE_S = 0.2
MAX_PAUSE_S = 10.0
REPEATABLE = ("GET", "DELETE", "PUT")  # the same twice as once
PAGE = 500
JSON_PATCH, MERGE_PATCH = "application/json-patch+json", "application/merge-patch+json"


def _check_configured() -> None:
    """Raises FileNotFoundError: the client would log that it finds no file, and then call it a broken one."""
    given = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
    if not any(map(os.path.exists, given.split(os.pathsep))):
        raise FileNotFoundError(f"there is no {given}")


class Cluster:
    """An open API server. Bodies and answers are the API's JSON."""

    def __init__(self, client: ApiClient, settings: Settings) -> None:
        self._configuration: Configuration = client.configuration
        self._client = client
        connector = aiohttp.TCPConnector(ssl=client.rest_client.ssl_context, limit=0)
        self._session = aiohttp.ClientSession(
            self._configuration.host.rstrip("/"),
            connector=connector,
            json_serialize=lambda value: json.dumps(value, separators=(",", ":")),
            read_bufsize=1 << 20,
            ws_response_class=Socket,
        )
        self._pace = _Pace(settings.calls_per_s, settings.calls_burst)
        self._clock = _Clock()
        self._execs: set[ExecStream] = set()
        #: How many requests were sent.
        self.calls = 0

    @classmethod
    async def open(cls, settings: Settings) -> Cluster:
        """The cluster of KUBECONFIG, of ~/.kube/config, or the one this process runs in. Raises BackendUnavailable."""
        configuration = Configuration()
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
                cluster_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
            else:
                _check_configured()
                await cluster_config.load_kube_config(  # type: ignore[no-untyped-call]
                    os.environ.get("KUBECONFIG"), client_configuration=configuration
                )
        except (cluster_config.ConfigException, OSError, ValueError, TypeError) as exc:
            raise BackendUnavailable(
                f"no cluster is configured: {exc}",
                hint="Set KUBECONFIG to a file that works with kubectl.",
            ) from exc
        cluster = cls(ApiClient(configuration), settings)
        try:
            await cluster.ask("GET", "/version")
        except BaseException:
            await cluster.aclose()
            raise
        return cluster

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            async with AsyncExitStack() as closing:
                closing.push_async_callback(self._client.close)
                closing.push_async_callback(self._session.close)
                for stream in self._execs:  # whoever was cut off before closing its own
                    closing.push_async_callback(stream.aclose)

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """One request. What was refused for the server's own sake is asked again, after the pause it names.

        Raises CaveNotFound (404), Conflict (409), InvalidArgument (400, 422), LimitExceeded (a quota),
        BackendUnavailable.
        """
        for attempt in range(TRIES):
            last = attempt + 1 == TRIES
            try:
                status, answer, after_s = await self._once(method, path, body, query)
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                # It may have been carried out: only what is the same twice is asked twice.
                if method != "GET" or last:
                    raise unreachable(exc) from exc
                await _rest(attempt)
                continue
            if status < 400:
                return answer
            if last or not (status == 429 or (status >= 500 and method in REPEATABLE)):
                raise meant(status, answer)
            await _rest(attempt, after_s)
        raise AssertionError("unreachable")

    async def _once(
        self, method: str, path: str, body: Any, query: Mapping[str, str] | None
    ) -> tuple[int, dict[str, Any], float]:
        headers, data = await self._admitted(), None
        if body is not None:
            patch = JSON_PATCH if isinstance(body, list) else MERGE_PATCH
            headers["Content-Type"] = patch if method == "PATCH" else "application/json"
            data = json.dumps(body, separators=(",", ":"))
        timeout = aiohttp.ClientTimeout(total=CALL_S)
        async with self._session.request(
            method,
            path,
            params=query,
            data=data,
            headers=headers,
            timeout=timeout,
            proxy=self._proxy,
        ) as response:
            raw = await read(response)
            self._clock.hear(response.headers.get("Date", ""))
            return response.status, document(raw), pause(response.headers)

    def now_s(self) -> float:
        """The server's clock, in seconds since the epoch: what is in the cluster is dated by it."""
        return self._clock.now_s()

    async def pages(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """All items of a list, page by page."""
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while True:
            answer = await self.ask("GET", path, query={**query, **more, "limit": str(PAGE)})
            found += answer.get("items") or []
            token = (answer.get("metadata") or {}).get("continue")
            if not token:
                return found
            more = {"continue": token}

    async def watch(
        self, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """What changes, as ``(ADDED | MODIFIED | DELETED | BOOKMARK, object)``, until the server ends the watch.

        Raises Conflict when the version it is to begin at is too old: list again, and watch from there;
        BackendUnavailable.
        """
        asked = {
            **query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        async with self._streamed(path, asked, silence_s=WATCH_S + CALL_S) as response:
            async for line in response.content:
                yield _change(document(line))

    async def exec(self, path: str, command: Sequence[str], container: str) -> ExecStream:
        """Run a program in a pod's container. Raises CaveGone when there is no such pod, or it does not run."""
        query = [("command", word) for word in command] + [("container", container)]
        query += [(stream, "true") for stream in ("stdin", "stdout", "stderr")]
        for attempt in range(TRIES):
            try:
                socket = await self._upgraded(path, query)
                break
            except aiohttp.WSServerHandshakeError as exc:
                if exc.status in (400, 404, 409, 500):
                    raise CaveGone("the cave has ended, or is just ending") from exc
                if exc.status != 429 or attempt + 1 == TRIES:  # throttled: nothing was done
                    raise meant(exc.status, {"message": exc.message}) from exc
                await _rest(attempt, pause(exc.headers or {}))
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                raise unreachable(exc) from exc
        assert isinstance(socket, Socket)  # noqa: S101  (the session makes no other)
        stream = ExecStream(socket, self._execs.discard)
        self._execs.add(stream)
        return stream

    async def _upgraded(
        self, path: str, query: list[tuple[str, str]]
    ) -> aiohttp.ClientWebSocketResponse[Any]:
        headers = await self._admitted()
        with anyio.fail_after(CALL_S):
            return await self._session.ws_connect(
                path,
                params=query,
                protocols=PROTOCOLS,
                headers=headers,
                max_msg_size=0,
                heartbeat=30.0,
                proxy=self._proxy,
            )

    @asynccontextmanager
    async def text(
        self, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A streamed answer in pieces, a pod's log."""
        async with self._streamed(path, query) as response:
            yield response.content.iter_any()

    @asynccontextmanager
    async def _streamed(
        self, path: str, query: Mapping[str, str], *, silence_s: float | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that goes on for as long as it likes, but is never silent for longer than that.

        What breaks while it is read is raised as BackendUnavailable, too.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_S, sock_read=silence_s)
        try:
            headers = await self._admitted()
            async with (
                self._session.get(
                    path, params=query, headers=headers, timeout=timeout, proxy=self._proxy
                ) as response,
                _broken_off(response),
            ):
                if response.status >= 400:
                    raise meant(response.status, document(await read(response)))
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            raise unreachable(exc) from exc

    @property
    def _proxy(self) -> str | None:
        return self._configuration.proxy or None

    async def _admitted(self) -> dict[str, str]:
        """Wait for the turn of one request; returns its headers.

        They are the identity: a token is read anew when it was renewed; a certificate is the connection's own.
        """
        await self._pace.wait()
        self.calls += 1
        headers = {"User-Agent": "ghost"}
        token = await self._configuration.get_api_key_with_prefix(
            "BearerToken", alias="authorization"
        )
        if token:
            headers["Authorization"] = token
        return headers


async def _rest(attempt: int, after_s: float = 0.0) -> None:
    """Before the next attempt: as long as the server asked for, or longer each time."""
    await anyio.sleep(min(after_s or PAUSE_S * 2**attempt, MAX_PAUSE_S))


def _change(event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """An event of a watch. Raises what an error among them means."""
    kind, thing = event.get("type"), event.get("object") or {}
    if kind == "ERROR":
        raise meant(int(thing.get("code") or 500), thing)
    return str(kind), thing


class _Clock:
    """The server's, as it told it last: this machine's may be wrong, or be set anew at any moment."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def hear(self, date: str) -> None:
        with suppress(ValueError, TypeError):  # a proxy's own answer need have none
            self._ahead_s = parsedate_to_datetime(date).timestamp() - time.monotonic()

    def now_s(self) -> float:
        return time.monotonic() + self._ahead_s


class _Pace:
    """At most so many requests a second, with room for a burst."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._room, self._at = float(burst), time.monotonic()

    async def wait(self) -> None:
        now = time.monotonic()
        self._room = min(self._burst, self._room + (now - self._at) * self._per_s) - 1
        self._at = now
        if self._room < 0:
            await anyio.sleep(-self._room / self._per_s)


@asynccontextmanager
async def _broken_off(response: aiohttp.ClientResponse) -> AsyncIterator[None]:
    """An answer that has no end of its own: what is left of it at the end of the block is given up."""
    try:
        yield
    finally:
        transport = response.connection.transport if response.connection else None
        await hang_up(transport.get_extra_info("socket") if transport else None)

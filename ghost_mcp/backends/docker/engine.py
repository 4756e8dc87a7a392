# Errors of the SDK, of HTTP and of the socket end here: nothing above this file sees one.
"""The connection to a container engine."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import docker
import requests
from docker import errors
from docker.transport import UnixHTTPAdapter

from ghost_mcp.backends.docker.address import SSH, Address, Tunnel, find_address
from ghost_mcp.errors import (
    BackendUnavailable,
    CaveNotFound,
    Conflict,
    GhostError,
    InvalidArgument,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import ByteStream

__all__ = ["Engine", "Upgraded", "clock", "map_errors", "open_client", "require_same_machine"]

T = TypeVar("T")

CALL_S = 60
HEAD_BYTES = 64 << 10
THREADS = 64  # conversations at once, and connections that are kept for them
_MACHINES = {"arm64": "aarch64", "amd64": "x86_64", "AMD64": "x86_64"}


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A connection that is no longer HTTP, and what was read of it already."""

    stream: ByteStream
    buffered: bytes


class Engine:
    """An open engine. The SDK is synchronous, so that each conversation with it takes a thread."""

    def __init__(
        self,
        client: docker.APIClient,
        address: Address,
        about: Mapping[str, Any],
        tunnel: Tunnel | None = None,
    ) -> None:
        self._client = client
        self._address = address
        self._tunnel = tunnel
        self._threads = anyio.CapacityLimiter(THREADS)
        self.about = about
        # Held against what nobody can set: this machine's clock may jump, and caves would seem old or unmade.
        self._ahead_s = _time_of(about) - time.monotonic()

    @classmethod
    async def open(cls) -> Engine:
        """The engine that the docker command would use. Raises BackendUnavailable, Unsupported."""
        return await anyio.to_thread.run_sync(cls._open)

    @classmethod
    def _open(cls) -> Engine:
        with map_errors():
            address = find_address()
            tunnel = Tunnel(address.url) if address.url.startswith(SSH) else None
            try:
                if tunnel is not None:
                    address = replace(address, url=tunnel.url, tls=None)
                client = _client(address)
                try:
                    about: Mapping[str, Any] = client.info()
                    return cls(client, address, about, tunnel)
                except BaseException:
                    client.close()
                    raise
            except BaseException:
                if tunnel is not None:
                    tunnel.close()
                raise

    def now(self) -> float:
        """The engine's clock, in seconds since the epoch, unless it was set since: clock() asks."""
        return time.monotonic() + self._ahead_s

    async def ask(self, act: Callable[[docker.APIClient], T]) -> T:
        """One conversation. A cancelled one is waited for, so that what it made is known."""

        def run() -> T:
            # Through a tunnel every connection is a program, and the tunnel's own end always answers.
            if self._tunnel is None:
                self._address.probe()
            return act(self._client)

        with map_errors():
            return await anyio.to_thread.run_sync(run, limiter=self._threads)

    async def upgrade(self, path: str, body: Mapping[str, Any] | None = None) -> Upgraded:
        """POST to ``path``; the connection then belongs to the caller. Raises as the answer's status says."""
        with map_errors():
            try:
                with anyio.fail_after(CALL_S):
                    stream = await self._address.connect()
                    try:
                        return await self._upgrade(stream, path, body)
                    except BaseException:
                        with anyio.CancelScope(shield=True):
                            await anyio.aclose_forcefully(stream)
                        raise
            except TimeoutError:
                raise BackendUnavailable("the container engine does not answer in time") from None

    async def _upgrade(
        self, stream: ByteStream, path: str, body: Mapping[str, Any] | None
    ) -> Upgraded:
        payload = b"" if body is None else json.dumps(body).encode()
        head = [
            f"POST /v{self._client.api_version}{path} HTTP/1.1",
            "Host: engine",
            "Connection: Upgrade",
            "Upgrade: tcp",
            "Content-Type: application/json",
            f"Content-Length: {len(payload)}",
        ]
        await stream.send("\r\n".join([*head, "", ""]).encode() + payload)
        answer = b""
        while b"\r\n\r\n" not in answer:
            if len(answer) > HEAD_BYTES:
                raise BackendUnavailable("the container engine's answer is no HTTP")
            answer += await stream.receive(HEAD_BYTES)
        first, _, rest = answer.partition(b"\r\n\r\n")
        status = first.split(b" ", 2)[1][:3]
        if status in (b"101", b"200"):
            return Upgraded(stream, rest)
        said = rest.decode("utf-8", "replace").strip()[-300:]
        raise _MEANT.get(int(status) if status.isdigit() else 0, BackendUnavailable)(said or path)

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        """In one step, so that nothing comes between."""
        try:
            self._client.close()
        finally:
            if self._tunnel is not None:
                self._tunnel.close()


def clock(engine: docker.APIClient) -> float:
    """What the engine's clock shows now, in seconds since the epoch."""
    return _time_of(engine.info())


def _time_of(about: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(about["SystemTime"]).timestamp()


def open_client() -> docker.APIClient:
    """The SDK's client of an engine that answers. Raises BackendUnavailable, Unsupported."""
    with map_errors():
        return _client(find_address())


def _client(address: Address) -> docker.APIClient:
    if address.url.startswith(SSH):
        raise Unsupported("this needs an engine on this machine, or one reached by tcp")
    address.probe()
    return _Client(**address.kwargs, version="auto", timeout=CALL_S, max_pool_size=THREADS)


class _OneEngine(UnixHTTPAdapter):
    """Keeps connections for whatever is asked next. The SDK's keeps some for each address that was ever asked, which
    seldom is asked again; and a new one may be a program, or many descriptors."""

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        return super().get_connection("http+docker://localhost", proxies)


class _Client(docker.APIClient):
    """The SDK's, with the authority that was given for the engine. The library below would take one that the
    environment names for the web instead."""

    def mount(self, prefix: Any, adapter: Any) -> None:
        if isinstance(adapter, UnixHTTPAdapter):
            path, kept = adapter.socket_path, adapter.max_pool_size
            adapter = _OneEngine(path, adapter.timeout, max_pool_size=kept)
        super().mount(prefix, adapter)

    def merge_environment_settings(
        self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
    ) -> Any:
        verify = self.verify if verify is None else verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


def require_same_machine(about: Mapping[str, Any]) -> None:
    """Raises Unsupported when what is made here does not run on the engine."""
    there, here = (
        _MACHINES.get(name, name) for name in (about["Architecture"], platform.machine())
    )
    if there != here:
        raise Unsupported(
            f"the engine runs on {there}, and the runtime that is made here on {here}",
            hint="Let the engine make one: ghost image build runtime, then set "
            "GHOST_RUNTIME_IMAGE=ghost-runtime:latest",
        )


@contextmanager
def map_errors() -> Iterator[None]:
    """The engine's errors, and those of the way to it, as ours."""
    try:
        yield
    except errors.APIError as exc:
        raise _meant(exc)(str(exc.explanation or exc)[:300]) from exc
    except (
        errors.DockerException,
        requests.RequestException,
        OSError,
        anyio.EndOfStream,
        anyio.BrokenResourceError,
    ) as exc:
        raise BackendUnavailable(
            f"the container engine does not answer: {str(exc)[:300]}",
            hint="Is Docker running, may you use it, and is DOCKER_HOST right? See: ghost doctor",
        ) from exc


_MEANT: dict[int, type[GhostError]] = {400: InvalidArgument, 404: CaveNotFound, 409: Conflict}


def _meant(exc: errors.APIError) -> type[GhostError]:
    if isinstance(exc, errors.ImageNotFound):
        return InvalidArgument
    return _MEANT.get(exc.status_code or 0, BackendUnavailable)

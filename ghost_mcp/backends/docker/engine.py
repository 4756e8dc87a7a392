# Errors of the SDK, of HTTP and of the socket end here: nothing above this file sees one.
"""The connection to a container engine."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
import docker
import requests
from docker import errors
from docker.utils import parse_host

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

__all__ = ["Engine", "map_errors", "open_client"]

T = TypeVar("T")

CALL_S = 60
UNIX = "http+unix://"


class Engine:
    """An open engine. The SDK is synchronous, so that each conversation with it takes a thread."""

    def __init__(self, client: docker.APIClient, about: Mapping[str, Any]) -> None:
        self._client = client
        self.about = about

    @classmethod
    async def open(cls) -> Engine:
        """The engine of DOCKER_HOST, or of this machine. Raises BackendUnavailable, Unsupported."""
        client = await anyio.to_thread.run_sync(open_client)
        try:
            with map_errors():
                about: Mapping[str, Any] = await anyio.to_thread.run_sync(client.info)
            _check(client, about)
        except BaseException:
            client.close()
            raise
        return cls(client, about)

    async def ask(self, act: Callable[[docker.APIClient], T]) -> T:
        """One conversation. A cancelled one is waited for, so that what it made is known."""
        with map_errors():
            return await anyio.to_thread.run_sync(act, self._client)

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._client.close)


def open_client() -> docker.APIClient:
    """The SDK's client of an engine that answers. Raises BackendUnavailable."""
    with map_errors():
        address: Any = parse_host(os.environ.get("DOCKER_HOST"))
        if address.startswith(UNIX):  # the SDK leaves the socket of an attempt that fails open
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(CALL_S)
                probe.connect(address.removeprefix(UNIX))
        return docker.from_env(timeout=CALL_S).api


def _check(client: docker.APIClient, about: Mapping[str, Any]) -> None:
    if not client.base_url.startswith(("http+docker://localhost", "http://")):
        raise Unsupported(
            "this engine is reached in a way that cannot carry a cave's link yet",
            hint="Give DOCKER_HOST as a unix socket or as plain tcp.",
        )
    there, here = about["Architecture"], platform.machine()
    if there != here:
        raise Unsupported(
            f"the engine runs on {there}, and the runtime that is made here on {here}"
        )


@contextmanager
def map_errors() -> Iterator[None]:
    """The engine's errors, and those of the way to it, as ours."""
    try:
        yield
    except errors.APIError as exc:
        raise _meant(exc)(str(exc.explanation or exc)[:300]) from exc
    except (errors.DockerException, requests.RequestException, OSError) as exc:
        raise BackendUnavailable(
            f"the container engine does not answer: {str(exc)[:300]}",
            hint="Is Docker running, may you use it, and is DOCKER_HOST right? See: ghost doctor",
        ) from exc


_MEANT: dict[int, type[GhostError]] = {400: InvalidArgument, 404: CaveNotFound, 409: Conflict}


def _meant(exc: errors.APIError) -> type[GhostError]:
    if isinstance(exc, errors.ImageNotFound):
        return InvalidArgument
    return _MEANT.get(exc.status_code or 0, BackendUnavailable)

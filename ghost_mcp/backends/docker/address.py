# Only this file knows where the engine is and what it takes to reach it.
"""From DOCKER_HOST, or the context that the docker command uses, to a connection of bytes."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess  # noqa: TID251 - its programs outlive an event loop's turn
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from docker.context import ContextAPI
from docker.utils import kwargs_from_env, parse_host

from ghost_mcp.errors import BackendUnavailable, Unsupported
from ghost_mcp.sockets import Wired

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import ByteStream
    from docker.tls import TLSConfig

__all__ = ["Address", "Tunnel", "find_address"]

UNIX, SSH, PIPE = "http+unix://", "ssh://", "npipe://"
PROBE_S = 10
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-T")
MAX_TUNNELLED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an engine is: ``http+unix://PATH``, ``http://``, ``https://`` or ``ssh://``."""

    url: str
    tls: TLSConfig | None = None

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """For the SDK's client."""
        return {"base_url": self.url, "tls": self.tls or False}

    def probe(self) -> None:
        """Raises OSError when nobody listens; the SDK would leave the socket of such an attempt open."""
        if self.url.startswith(UNIX):
            with socket.socket(socket.AF_UNIX) as tried:
                tried.settimeout(PROBE_S)
                tried.connect(self.url.removeprefix(UNIX))

    async def connect(self) -> ByteStream:
        """A connection of our own, for what outlives one request. Raises OSError, ssl.SSLError."""
        if self.url.startswith(UNIX):
            return Wired(await anyio.to_thread.run_sync(self._dial))
        at = urlsplit(self.url)
        host, port = at.hostname or "localhost", at.port or 2375
        if at.scheme != "https":
            return await anyio.connect_tcp(host, port)
        return await anyio.connect_tcp(
            host, port, ssl_context=self._tls_context(), tls_standard_compatible=False
        )

    def _dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(PROBE_S)
            sock.connect(self.url.removeprefix(UNIX))
        except BaseException:
            sock.close()
            raise
        return sock

    def _tls_context(self) -> ssl.SSLContext:
        config = self.tls
        if config is None or not config.verify:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        else:
            context = ssl.create_default_context(cafile=config.ca_cert)
        if config is not None and config.cert:
            context.load_cert_chain(*config.cert)
        return context


def find_address() -> Address:
    """What the docker command would use: DOCKER_HOST, else DOCKER_CONTEXT or the current context.

    Raises DockerException for settings that cannot be read, Unsupported.
    """
    found: Any = kwargs_from_env()
    if "base_url" not in found:
        found = {**ContextAPI.kwargs_from_context(), **found}
    tls: Any = found.get("tls") or None
    url: Any = parse_host(found.get("base_url"), os.name == "nt", tls=tls is not None)
    if str(url).startswith(PIPE):
        raise Unsupported(
            "an engine behind a named pipe cannot carry a cave's link",
            hint="Let it listen on tcp, or reach it through ssh: DOCKER_HOST=ssh://...",
        )
    return Address(url=str(url), tls=tls)


class Tunnel:
    """A unix socket here that is an engine elsewhere: each connection is one ``docker system dial-stdio`` over ssh.

    The ssh command reads and writes the connection itself: nothing is copied here.
    """

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        ssh_command = shutil.which("ssh")
        if ssh_command is None or not hasattr(socket, "AF_UNIX"):
            raise BackendUnavailable(
                "ssh to the engine needs the ssh command and unix sockets here",
                hint="apt-get install openssh-client",
            )
        self._folder = tempfile.mkdtemp(prefix="ghost-ssh-")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(f"{self._folder}/engine")  # no path that is too long
            self._listener.listen(MAX_TUNNELLED)
        except OSError:
            self._listener.close()
            shutil.rmtree(self._folder)
            raise
        user = ["-l", at.username] if at.username else []
        port = ["-p", str(at.port)] if at.port else []
        # Connections after the first go through it, where this ssh can: they cost a tenth.
        control = f"{self._folder}/%C"
        shared = [f"-oControlPath={control}", "-oControlMaster=auto", "-oControlPersist=20"]
        dial = ["docker", "system", "dial-stdio"]
        self._ssh = [ssh_command, *SSH_OPTIONS, *shared, *user, *port]
        self._there = ["--", at.hostname or ""]
        self._argv = [*self._ssh, *self._there, *dial]
        self._programs: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._serve, name="ssh to the engine", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{UNIX}{self._folder}/engine"

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._programs = [one for one in self._programs if one.poll() is None]
            with client, suppress(OSError):  # one that cannot start: whoever connected sees an end
                fd = client.fileno()
                started = subprocess.Popen(  # noqa: S603 - the address is the user's own setting
                    self._argv, stdin=fd, stdout=fd, stderr=subprocess.DEVNULL
                )
                self._programs.append(started)

    def close(self) -> None:
        """End all connections. Blocks for a moment."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PROBE_S)
        for program in self._programs:
            program.terminate()
        for program in self._programs:
            program.wait(PROBE_S)
        # The shared connection; without a word it would stay for a while.
        with suppress(OSError, subprocess.TimeoutExpired):
            end = [*self._ssh, "-O", "exit", *self._there]
            subprocess.run(end, check=False, capture_output=True, timeout=PROBE_S)  # noqa: S603 - as above
        shutil.rmtree(self._folder, ignore_errors=True)

"""Engines that are reached in other ways, or go away: a private one with certificates of its own, ssh before it."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ghost_mcp import CaveSpec, Ghost, GhostError, State
from ghost_mcp.backends.docker.backend import DockerBackend
from ghost_mcp.errors import BackendUnavailable, CaveGone, CaveNotFound
from tests import engine_images
from tests.listening import free_port

pytestmark = pytest.mark.docker

START_S = 60


@dataclass(slots=True)
class Private:
    """A dockerd of this test's own, with nothing but an image."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    image: str = ""

    @property
    def address(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    @property
    def bridge(self) -> str:
        """A bridge of its own: with none, a dockerd takes the one of the machine's own engine away."""
        return f"ghost-e{self.port}"

    def start(self) -> None:
        tls = self.folder / "tls"
        command = [
            *("dockerd", "--host", self.address, "--host", f"tcp://127.0.0.1:{self.port}"),
            *("--tlsverify", "--tlscacert", f"{tls}/ca.pem"),
            *("--tlscert", f"{tls}/server.pem", "--tlskey", f"{tls}/server-key.pem"),
            *("--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec"),
            *("--pidfile", f"{self.folder}/pid", "--log-level", "error"),
            *("--bridge", self.bridge, "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
        ]
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while True:
            if _listens(f"{self.folder}/docker.sock"):
                return
            if time.monotonic() > deadline or self.process.poll() is not None:
                pytest.skip("not run: no private dockerd starts here")
            time.sleep(0.1)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(START_S)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as tried:
        return tried.connect_ex(path) == 0


@pytest.fixture(scope="module")
def private() -> Iterator[Private]:
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("not run: only root can start a container engine of its own")
    # A short path: unix sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="ghost-e", dir="/var/tmp"))
    port = free_port()
    engine = Private(folder, port)
    _certificates(folder / "tls")
    _ip("link", "add", engine.bridge, "type", "bridge")
    try:
        _ip("address", "add", f"10.254.{port % 250}.1/24", "dev", engine.bridge)
        engine.start()
        client = docker.APIClient(base_url=engine.address)
        with _given(engine_images.small(client)) as image:
            engine.image = image
            yield engine
            _clear(client)
        client.close()
    finally:
        if engine.process is not None:
            engine.stop()
        _ip("link", "delete", engine.bridge)
        shutil.rmtree(folder)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def _given(images: Iterator[str]) -> Iterator[str]:
    with contextmanager(lambda: images)() as image:
        yield image


def _clear(client: docker.APIClient) -> None:
    for volume in client.volumes()["Volumes"] or ():
        client.remove_volume(volume["Name"])


def _certificates(folder: Path) -> None:
    """An authority, a server's and a client's certificate."""
    folder.mkdir()
    authority = ec.generate_private_key(ec.SECP256R1())
    root = _certificate("authority", authority, None, authority)
    _write(folder, "ca", root, authority)
    for name in ("server", "cert"):
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder, name, _certificate(name, key, root, authority), key)
    os.rename(folder / "cert-key.pem", folder / "key.pem")


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    by: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(here, critical=False)
        .sign(by, hashes.SHA256())
    )


def _write(
    folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / f"{name}-key.pem").write_bytes(secret)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)


async def _works(private: Private) -> None:
    """A cave is made there, is used, and is found by another link."""
    big = "x" * 300_000
    async with Ghost(backend=DockerBackend(image=private.image, instance="remote")) as ghost:
        cave = await ghost.create(CaveSpec(ephemeral=True))
        assert (await cave.exec(["cat"], stdin=big)).stdout == big
        async with Ghost(backend=DockerBackend(instance="remote")) as other:
            assert (await (await other.get(cave.id)).exec(["echo", "found"])).stdout == "found\n"
        await cave.destroy()


async def test_an_engine_by_tls(private: Private, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{private.port}")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(private.folder / "tls"))
    await _works(private)


async def test_an_engine_whose_certificate_nobody_vouches_for_is_refused(
    private: Private, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _certificates(tmp_path / "tls")
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{private.port}")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path / "tls"))
    with pytest.raises(BackendUnavailable):
        await DockerBackend().__aenter__()


async def test_an_engine_of_a_context(
    private: Private, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tls = private.folder / "tls"
    given = (
        f"host=tcp://127.0.0.1:{private.port},ca={tls}/ca.pem,cert={tls}/cert.pem,key={tls}/key.pem"
    )
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    create = ["docker", "context", "create", "elsewhere", "--docker", given]
    subprocess.run(create, check=True, capture_output=True)
    monkeypatch.setenv("DOCKER_CONTEXT", "elsewhere")
    await _works(private)


@pytest.fixture
def ssh(private: Private, tmp_path: Path) -> Path:
    """A folder with an ssh that reaches any host by an sshd of its own, in whose sessions the private engine is the
    engine. That sshd talks through a pipe: no port is taken, and it ends with the ssh that started it."""
    server, client = shutil.which("sshd", path="/usr/sbin:/usr/bin"), shutil.which("ssh")
    if server is None or client is None:
        pytest.skip("not run: openssh-server and openssh-client are not here")
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(keygen, check=True)
    (tmp_path / "sshd.conf").write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\n"
        f"PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nMaxSessions 100\n"
        f"SetEnv DOCKER_HOST={private.address}\n"
    )
    (tmp_path / "ssh.conf").write_text(
        f"IdentityFile {tmp_path}/user\nUserKnownHostsFile /dev/null\nStrictHostKeyChecking no\n"
        f"ProxyCommand {server} -i -f {tmp_path}/sshd.conf\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {client} -F {tmp_path}/ssh.conf "$@"\n')
    wrapper.chmod(0o755)
    return wrapper.parent


async def test_an_engine_by_ssh(
    private: Private, ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real ssh, with the settings that a user has in ~/.ssh."""
    monkeypatch.setenv("PATH", f"{ssh}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_HOST", "ssh://root@engine.test")
    await _works(private)


async def test_an_engine_that_restarts_while_caves_are_used(
    private: Private, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls under way fail at once and say why; afterwards the same Ghost goes on."""
    monkeypatch.setenv("DOCKER_HOST", private.address)
    async with Ghost(backend=DockerBackend(image=private.image, instance="restart")) as ghost:
        kept = await ghost.create(CaveSpec(name="kept"))
        passing = await ghost.create(CaveSpec(ephemeral=True))
        await kept.write("note", "here")
        async with kept.process(["sleep", "1000"]) as process:
            private.stop()
            with pytest.raises(CaveGone):
                await process.wait()
        for act in (lambda: kept.exec(["true"]), ghost.list, lambda: ghost.create(CaveSpec())):
            with pytest.raises(GhostError) as caught:
                await act()
            assert isinstance(caught.value, BackendUnavailable | CaveGone)
            assert caught.value.hint
        private.start()
        assert [info.name for info in await ghost.list()] == ["kept"]
        with pytest.raises((CaveGone, CaveNotFound)):
            await passing.exec(["true"])
        assert (await ghost.start("kept")).state is State.RUNNING
        assert (await kept.read("note")).data == b"here"
        await kept.destroy()


def test_nothing_that_only_linux_has_is_imported() -> None:
    """The docker backend is the default elsewhere: it must load where these modules are missing."""
    absent = ("fcntl", "pwd", "grp", "resource", "termios", "pty", "tty")
    others = "import sys, asyncio, anyio, docker\n"
    blocked = f"for name in {absent!r}: sys.modules[name] = None\nsys.platform = 'darwin'\n"
    loads = "import ghost_mcp.backends.docker.backend, ghost_mcp.ghost, ghost_mcp.cli\n"
    done = subprocess.run(
        [sys.executable, "-c", others + blocked + loads],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

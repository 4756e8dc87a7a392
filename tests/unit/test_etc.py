"""A cave's /etc: what it holds of this host, what it never holds, and that programs work with it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ghost_mcp.backends.local import etc
from ghost_mcp.backends.local.etc import ENVIRONMENT, WRITTEN, assemble, build_etc
from ghost_mcp.backends.local.seccomp import filter_bytes

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="not run: caves of this kind need Linux"
)
needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="not run: bubblewrap is not here"
)

SECRETS = ("shadow", "gshadow", "sudoers", "ssh", "ssl/private", "pip.conf", "npmrc", "gitconfig",
           "environment", "fstab", "cron.d", "postgresql", "docker", "kubernetes")  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_etc(tmp_path_factory.mktemp("cache"))


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_nothing_in_it_is_closed_to_others_on_the_host(built: Path) -> None:
    copied = 0
    for path in built.rglob("*"):
        name = str(path.relative_to(built))
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) or name in WRITTEN or name == "ghost":
            continue
        assert mode & 0o777 in (0o755, 0o644), name
        host = os.lstat(f"/etc/{name}")
        assert host.st_mode & 0o004, name
        assert stat.S_IFMT(host.st_mode) == stat.S_IFMT(mode)
        copied += 1
    assert copied > 20


def test_the_host_keeps_its_secrets_and_its_identity(built: Path) -> None:
    for name in SECRETS:
        assert not os.path.lexists(built / name), name
    if os.path.exists("/etc/machine-id"):
        assert (built / "machine-id").read_text() != Path("/etc/machine-id").read_text()
    users = {line.split(":")[0] for line in (built / "passwd").read_text().splitlines()}
    assert users == {"root", "cave", "nobody"}
    assert (built / "hostname").read_text() == "cave\n"
    assert (built / "resolv.conf").read_text() == ""


def test_what_is_not_for_everyone_is_left_out(tmp_path: Path) -> None:
    source, target = tmp_path / "etc", tmp_path / "copy"
    target.mkdir()
    for folder in ("ssl/certs/sub", "fonts/closed", "chromium", "python3"):
        (source / folder).mkdir(parents=True)
    canary = "canary-7f3a"
    (source / "canary.conf").write_text(canary)  # a name nobody asked for
    (source / "mime.types").write_text("text/plain txt\n")
    (source / "ssl/certs/good.pem").write_text("-----BEGIN CERTIFICATE-----")
    (source / "ssl/certs/sub/key.pem").write_text(f"-----BEGIN RSA PRIVATE KEY-----{canary}")
    (source / "ssl/certs/closed.pem").write_text(canary)
    (source / "ssl/certs/closed.pem").chmod(0o640)
    (source / "fonts/closed/fonts.conf").write_text(canary)
    (source / "fonts/closed").chmod(0o750)
    (source / "services").symlink_to("canary.conf")  # stays a link, and leads nowhere
    (source / "chromium").chmod(0o700)
    (source / "chromium/policy.json").write_text(canary)
    os.mkfifo(source / "python3/pipe")
    (source / "python3/huge").touch()
    os.truncate(source / "python3/huge", 9 << 20)
    assemble(target, str(source))
    copies = set(entries(target)) - set(WRITTEN)
    assert copies == {
        "fonts", "ghost", "mime.types", "python3", "services", "ssl", "ssl/certs", "ssl/certs/good.pem",
        "ssl/certs/sub",
    }  # fmt: skip
    assert os.readlink(target / "services") == "canary.conf"
    assert not any(canary in p.read_text() for p in target.rglob("*") if p.is_file())


def test_a_closed_folder_above_closes_what_is_below(tmp_path: Path) -> None:
    source, target = tmp_path / "etc", tmp_path / "copy"
    target.mkdir()
    (source / "ssl/certs").mkdir(parents=True)
    (source / "ssl/certs/good.pem").write_text("x")
    (source / "ssl").chmod(0o700)
    assemble(target, str(source))
    assert not (target / "ssl").exists()


def test_the_second_call_is_free(built: Path) -> None:
    spans_s = []
    for _ in range(10):  # the best of ten: others use this machine too
        started = time.perf_counter()
        again = build_etc(built.parent)
        spans_s.append(time.perf_counter() - started)
    assert min(spans_s) < 0.002
    assert again == built
    assert list(built.parent.iterdir()) == [built]


def test_a_change_on_the_host_makes_a_new_copy(tmp_path: Path) -> None:
    (tmp_path / "fonts").mkdir()
    (tmp_path / "services").write_text("http 80/tcp\n")
    keys = [etc._key(str(tmp_path))]
    (tmp_path / "unrelated.conf").write_text("x")
    assert etc._key(str(tmp_path)) == keys[0]
    (tmp_path / "services").write_text("http 8080/tcp\n")
    keys.append(etc._key(str(tmp_path)))
    (tmp_path / "fonts/fonts.conf").write_text("x")
    keys.append(etc._key(str(tmp_path)))
    (tmp_path / "python3.99").mkdir()
    keys.append(etc._key(str(tmp_path)))
    assert len(set(keys)) == 4


def in_cave(built: Path, *command: str) -> subprocess.CompletedProcess[str]:
    read, write = os.pipe()
    os.write(write, filter_bytes())
    os.close(write)
    env = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **ENVIRONMENT}
    try:
        return subprocess.run(
            [
                "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
                "--uid", "1000", "--gid", "1000", "--hostname", "cave", "--clearenv",
                *[word for pair in env.items() for word in ("--setenv", *pair)],
                "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin",
                "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
                "--ro-bind", str(built), "/etc", "--proc", "/proc", "--dev", "/dev",
                "--tmpfs", "/tmp", "--seccomp", str(read), "--", *command,
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            pass_fds=[read],
        )  # fmt: skip
    finally:
        os.close(read)


@needs_bwrap
def test_names_and_certificates_work_in_a_cave(built: Path) -> None:
    program = """
import getpass, grp, mimetypes, pwd, socket, ssl
assert pwd.getpwuid(1000).pw_name == getpass.getuser() == grp.getgrgid(1000).gr_name == "cave"
assert socket.gethostbyname("localhost") == socket.gethostbyname(socket.gethostname()) == "127.0.0.1"
assert socket.getservbyname("https") == 443
assert mimetypes.guess_type("a.pdf")[0] == "application/pdf"
try: socket.getaddrinfo("example.org", 80)
except socket.gaierror: pass
else: raise AssertionError("a name was resolved")
print(ssl.create_default_context().cert_store_stats()["x509_ca"])
"""
    done = in_cave(built, "/usr/bin/python3", "-c", program)
    assert done.returncode == 0, done.stderr
    if os.path.exists("/etc/ssl/certs/ca-certificates.crt"):
        assert int(done.stdout) > 50
    shell = in_cave(built, "bash", "-ic", "echo $PS1; whoami")
    assert shell.stdout == "\\u@\\h:\\w\\$\ncave\n", shell.stderr


@needs_bwrap
@pytest.mark.skipif(not os.path.exists("/usr/bin/node"), reason="not run: node is not here")
def test_node_sees_the_loopback(built: Path) -> None:
    script = (
        "import('node:os').then(({networkInterfaces, default: os}) => console.log(JSON.stringify("
        "[require('os').networkInterfaces(), os.networkInterfaces(), networkInterfaces()])))"
    )
    done = in_cave(built, "/usr/bin/node", "-e", script)
    assert done.returncode == 0, done.stderr
    for seen in json.loads(done.stdout):
        assert [line["address"] for line in seen["lo"]] == ["127.0.0.1", "::1"]


@needs_bwrap
@pytest.mark.skipif(shutil.which("fc-list") is None, reason="not run: fontconfig is not here")
def test_fonts_are_found(built: Path) -> None:
    here = subprocess.run(["fc-list", ":", "file"], capture_output=True, text=True, check=True)
    done = in_cave(built, "fc-list", ":", "file")
    assert "Fontconfig error" not in done.stderr
    system = {line for line in here.stdout.splitlines() if line.startswith("/usr/share/")}
    assert system <= set(done.stdout.splitlines())


@needs_bwrap
@pytest.mark.skipif(shutil.which("chromium") is None, reason="not run: chromium is not here")
def test_chromium_starts(built: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir=/tmp/profile"]
    page = "data:text/html,<script>document.write(6*7)</script>"
    done = in_cave(built, "chromium", *flags, "--dump-dom", page)
    assert "<body>42</body>" in done.stdout, done.stderr

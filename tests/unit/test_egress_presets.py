"""Presets: what this machine's own pip, npm and apt use, read from their files, however those look."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.backends.fake import FakeBackend
from ghost_mcp.egress import places, presets, registries
from ghost_mcp.egress.hosts import normal_host
from ghost_mcp.egress.ledger import Ledger
from ghost_mcp.egress.policy import Policy, Target, known_rules, read_rules
from ghost_mcp.errors import InvalidArgument, Unsupported
from ghost_mcp.spec import NetworkPolicy

PIP = 'PyPI = PackageIndex("https://{}/", file_storage_domain="{}")\nTestPyPI = PackageIndex("https://no.example/")\n'
R, A = "https://r.example/", "https://a.example/x"


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    presets._of_this_machine.cache_clear()
    yield
    presets._of_this_machine.cache_clear()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home, a folder of programs (``bin``) and apt's folder (``apt``) with nothing in them."""
    (tmp_path / "bin").mkdir()
    for name in list(os.environ):
        if name.lower().startswith(("npm_config_", "pip_", "xdg_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(registries, "_APT", str(tmp_path / "apt"))
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    return tmp_path


def allowed(rule: str, *hosts: str, port: int = 443) -> list[bool]:
    rules = Policy(open=False, rules=read_rules([rule]))
    return [rules.target(Target.read(host, port)).allowed for host in hosts]


def put_npm(top: Path, module: str, text: str) -> Path:
    """npm as it is installed below a folder, with its settings' definitions in ``module``. Returns its folder."""
    npm = top / "lib/node_modules/npm"
    for path in (npm / "bin/npm-cli.js", npm / module):
        path.parent.mkdir(parents=True, exist_ok=True)
    (npm / "bin/npm-cli.js").touch(0o755)
    (npm / module).write_text(text)
    (top / "bin/npm").symlink_to("../lib/node_modules/npm/bin/npm-cli.js")
    return npm


# --- what the tools use by themselves ---


def test_pip_is_asked_what_it_uses_by_itself() -> None:
    pytest.importorskip("pip", reason="not run: no pip in this environment")
    from pip._internal.models.index import PyPI

    assert registries.built_in("pip") == (PyPI.netloc, PyPI.file_storage_domain)


def test_npm_is_asked_what_it_uses_by_itself(tmp_path: Path) -> None:
    program = shutil.which("npm")
    if program is None:
        pytest.skip("not run: no npm here")
    if not os.path.realpath(program).endswith("/npm-cli.js"):
        pytest.skip("not run: npm here is another program's shim")
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    argv = [
        program,
        "config",
        "get",
        "registry",
        "--userconfig=none",
        "--globalconfig=nothing",
    ]
    said = subprocess.run(
        argv, env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    host = said.stdout.strip().removeprefix("https://").rstrip("/")
    assert registries.built_in("npm") == (host,)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (registries._NPM_MODULES[0], "  registry: new Definition('registry', {\n    default: 'https://r.example/',\n"),
        (registries._NPM_MODULES[1], "define('registry', {\n  default: 'https://r.example/',\n  type: url,\n"),
        (registries._NPM_MODULES[2], "define('registry', {\n  default: 'https://r.example/',\n  type: url,\n"),
        (registries._NPM_MODULES[3], f"  registry: '{R}',\n  rollback: true,\n"),
    ],
)  # fmt: skip
def test_npm_is_found_as_it_was_installed_over_the_years(
    bare: Path, module: str, text: str
) -> None:
    npm = put_npm(bare, module, f"'unlink-registry': 0, other: 'https://other.example'\n{text}")
    assert registries.built_in("npm") == ("r.example",)
    (npm / "npmrc").write_text(f"registry={R}\n")
    (bare / "etc").mkdir()
    (bare / "etc/npmrc").write_text("@x:registry = {}\n".format("http://global.example:4873"))
    assert {"r.example", "global.example:4873"} <= set(registries.configured("npm", os.environ))


def test_pip_is_found_in_what_new_environments_get(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pip-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(registries._PIP_MODULE, PIP.format("i.example", "files.example"))
    whole = tmp_path / "pip-1-py3-none-any.whl"
    text = registries._packed(str(whole), registries._PIP_MODULE)
    assert registries.hosts(iter([places.pip_default(text)])) == ("i.example", "files.example")
    whole.write_bytes(whole.read_bytes()[:-30])
    assert registries._packed(str(whole), registries._PIP_MODULE) == ""


# --- what this machine is configured with ---


def test_a_preset_has_what_this_machine_uses_for_it(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name alone: no credentials, no addresses, no proxy, and nothing that leads to the host."""
    mine, off = "https://me:pass@index.corp.example:8443/simple", "http://off.example/"
    monkeypatch.setenv("PIP_INDEX_URL", mine)
    (bare / ".pip").mkdir()
    (bare / ".pip/pip.conf").write_text(
        f"[global]\nindex-url = {A}\nproxy = http://proxy.example:3128\n"
        "extra_index_url =\r\n  http://b.example/\r\n  http://10.0.0.5/\n  http://127.1:3141/\n"
        f"# find-links = {off}\nno-index-url = {off}\n"
    )
    monkeypatch.setenv("CORP", "t2.example")
    filled = "https://${CORP}/"
    (bare / ".npmrc").write_text(
        f"@corp:registry = {mine}\n//x/:_authToken=http://t.example\n@b:registry={filled}\n"
    )
    assert all(allowed("@pip", "a.example", "b.example", *registries.built_in("pip")))
    assert not any(
        allowed("@pip", "proxy.example", "off.example", "10.0.0.5", "index.corp.example")
    )
    assert allowed("@npm", "t2.example", "t.example") == [True, False]
    for preset in ("@pip", "@npm"):
        assert allowed(preset, "index.corp.example", port=8443) == [True]
        rules = Policy(open=False, rules=read_rules([preset]))
        target = Target.read("index.corp.example", 8443)
        for address in ("10.0.0.5", "127.0.0.1", "169.254.169.254"):
            assert not rules.address(target, ip_address(address)).allowed


def test_pip_can_be_told_to_read_no_file(bare: Path) -> None:
    (bare / ".pip").mkdir()
    (bare / ".pip/pip.conf").write_text(f"[global]\nindex-url = {A}\n")
    home = {"HOME": str(bare)}
    assert "a.example" in registries.configured("pip", home)
    assert registries.configured("pip", {**home, "PIP_CONFIG_FILE": os.devnull}) == ()


def test_debian_is_what_apt_uses_here(bare: Path) -> None:
    apt = bare / "apt"
    (apt / "sources.list").write_text(
        "# deb http://off.example/debian x main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main\n"
        "deb-src http://source.example/debian bookworm main\ndeb cdrom:[x]/ bookworm main\n"
        f"deb mirror+file:{bare}/mirrors bookworm main\n"
    )
    (bare / "mirrors").write_text(
        "https://m1.example/debian\tpriority:1\nhttps://m2.example:8080/debian\n"
    )
    (apt / "sources.list.d/debian.sources").write_text(
        "Types: deb deb-src\n# URIs: http://off.example\nuris: http://b.example/debian\n  https://c.example/x\n"
        "Suites: bookworm\n\n# http://off.example\nTypes: deb\nEnabled: no\nURIs: http://off.example/\n"
        "\nTypes: deb-src\nURIs: http://source.example/\n"
    )
    (apt / "sources.list.d/old.list.disabled").write_text("deb http://off.example/ x main\n")
    assert registries.configured("debian", {}) == (
        *("a.example", "b.example", "c.example", "m1.example", "m2.example:8080"),
    )


def test_what_is_no_plain_file_is_not_waited_for(bare: Path) -> None:
    os.mkfifo(bare / "apt/sources.list")
    (bare / "apt/sources.list.d/x.list").mkdir()
    assert registries.configured("debian", {}) == ()


# --- what is not here ---


def test_a_preset_that_is_nothing_here_is_refused_with_the_way_out(bare: Path) -> None:
    with pytest.raises(Unsupported, match="@debian holds nothing on this machine") as caught:
        read_rules(["@debian"])
    assert "--allow HOST" in caught.value.hint
    assert "/etc/apt/sources.list.d" in caught.value.hint
    with pytest.raises(Unsupported):
        Ledger(bare / "ledger").grant("@debian")
    (bare / "apt/sources.list").write_text("deb http://later.example/ x main\n")
    assert allowed("@debian", "later.example") == [True]  # what failed is looked at again


async def test_a_cave_is_not_made_with_it_and_one_that_is_there_says_why(bare: Path) -> None:
    spec = CaveSpec(network=NetworkPolicy(mode="allow", allow=("@debian", "a.example")))
    assert CaveSpec.from_dict(spec.as_dict()) == spec  # another machine's cave can be listed here
    async with Ghost(backend=FakeBackend()) as ghost:
        with pytest.raises(Unsupported, match="@debian"):
            await ghost.create(spec)
        assert await ghost.list() == []
    rules = Policy(open=False, rules=known_rules(spec.network.allow))
    assert rules.target(Target.read("a.example", 443)).allowed
    refused = rules.target(Target.read("b.example", 443))
    assert not refused.allowed
    assert "@debian holds nothing on this machine" in refused.why


def test_presets_are_known_by_name_and_others_are_refused() -> None:
    assert presets.PRESETS == ("pip", "npm", "debian", "github")
    assert allowed("@github", "github.com") == [True]
    with pytest.raises(InvalidArgument, match="no such preset"):
        NetworkPolicy(mode="allow", allow=("@none",))


# --- whatever the files hold ---

PIECES = st.sampled_from(
    [
        *("deb ", "deb [", "]", "URIs:", "Types: deb", "Enabled: no", "\n", "\n\n", "\n  ", " ", "#", "=", ":", "\0"),
        *("https://", "http://", "a.example", "[::1]", ":99999", "u:p@", "mirror+file:/", "..", "${", "}", "?", "ü"),
        *("index-url", "find-links", "registry", "@x:", "PyPI = X(", '"', ")", "file_storage_domain=", "define('", "}"),
    ]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=40).map("".join))


@given(TEXTS)
@example("deb [" * 2000)
@example("index-url=" + "\n x" * 2000)
@example("registry" * 4000)
@example("${" * 4000)
def test_whatever_a_file_holds_only_names_come_of_it(text: str) -> None:
    read = (
        *(places.pip_default(text), places.pip_settings(text), places.npm_default(text)),
        *(
            places.npm_settings(text, {"x": text}),
            places.apt_lines(text),
            places.apt_stanzas(text),
            text,
        ),
    )
    found = registries.hosts(iter(read))
    assert len(found) <= registries.MAX_HOSTS
    for rule in found:
        host = rule.partition(":")[0]
        assert normal_host(host) == host
        assert not host.rpartition(".")[2].isdigit()
    read_rules(found)


@given(st.binary(max_size=300))
def test_whatever_bytes_a_file_is_of_nothing_breaks(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "any.conf"
    path.write_bytes(b"index-url = " + data)
    registries.configured("pip", {"PIP_CONFIG_FILE": str(path)})
    registries.configured("npm", {"npm_config_userconfig": str(path), "HOME": "\ud800"})
    assert registries._packed(str(path), registries._PIP_MODULE) == ""

"""``ghost install`` on files as people have them: comments, other servers, links, broken text, odd permissions."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghost_mcp.cli import main
from ghost_mcp.cli.clients import CLIENTS, Client, Machine, Way, client, entry
from ghost_mcp.errors import Unsupported

from .conftest import Cli

TOKEN = "gh-0123456789abcdef"  # noqa: S105 - of these tests only
JSON_CLIENTS = [one.name for one in CLIENTS if one.syntax != "toml"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def run(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """``ghost WORDS --json`` of a person whose home is ``home``."""
    for name in ("XDG_CONFIG_HOME", "CODEX_HOME", "CLAUDE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))

    def run(*words: str, code: int = 0, token: str = "") -> Any:
        monkeypatch.setenv("GHOST_TOKEN", token)
        assert main([*words, "--json"]) == code
        said = capfd.readouterr()
        assert said.err == ""
        return json.loads(said.out)

    return run


def file_of(one: Client, home: Path) -> Path:
    machine = Machine(system="linux", home=str(home), project="/project", variables={})
    path = Path(one.path("user", machine))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def servers(one: Client, path: Path) -> dict[str, Any]:
    text = path.read_text()
    found: dict[str, Any] = (tomllib if one.syntax == "toml" else json).loads(text)[one.table]
    return found


@pytest.mark.parametrize("one", CLIENTS, ids=lambda one: one.name)
def test_from_nothing_and_back(one: Client, run: Callable[..., Any], home: Path) -> None:
    path = file_of(one, home)
    tried = run("install", one.name, "--dry-run")
    assert tried["changed"]
    assert not tried["written"]
    assert "mcp" in tried["diff"]
    assert not path.exists()
    assert run("install", one.name)["path"] == str(path)
    entry = servers(one, path)["ghost"]
    assert os.path.isabs(entry["command"])
    assert entry["args"][-1] == "mcp"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.stat()
    again = run("install", one.name)
    assert (again["changed"], again["diff"], again["backup"]) == (False, "", "")
    assert path.stat() == before
    assert run("uninstall", one.name)["changed"]
    assert "ghost" not in path.read_text()
    assert not run("uninstall", one.name)["changed"]


JSONC = """\
{
\t// what my team uses
\t"inputs": [ { "id": "k", "type": "promptString" } ], /* kept */
\t"servers": {
\t\t"other": { "type": "stdio", "command": "x", "env": { "KEY": "sk-secret" } }, // mine
\t}
}
"""
TOML = """\
model = "o" # the best
notes = '''
[mcp_servers.ghost]
'''

[mcp_servers.other]
command = "x"
env = { KEY = "sk-secret" }
# above the profile
[profiles.fast]
model = "f"
"""


@pytest.mark.parametrize(("name", "text"), [("vscode", JSONC), ("codex", TOML), ("cursor", JSONC)])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_the_rest_of_the_file_stays(
    name: str, text: str, ends: str, bom: str, run: Callable[..., Any], home: Path
) -> None:
    one = client(name)
    path = file_of(one, home)
    given = (
        bom + text.replace("servers", one.table) if one.syntax == "jsonc" else bom + text
    ).replace("\n", ends)
    path.write_bytes(given.encode())
    path.chmod(0o640)
    told = run("install", name)
    assert "sk-secret" not in told["diff"]
    written = path.read_bytes().decode()
    lines = written.split(ends)
    assert all(line in lines or f"{line}," in lines for line in given.split(ends))
    assert "\n" not in written.replace(ends, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert Path(told["backup"]).read_bytes() == given.encode()
    assert stat.S_IMODE(os.stat(told["backup"]).st_mode) == 0o640
    run("uninstall", name)
    assert path.read_bytes().decode() == given


def test_strict_files_keep_their_bytes(run: Callable[..., Any], home: Path) -> None:
    for given in (
        '{"mcpServers": {"a": {"command": "x"}}, "é": 1e3}',
        '{\n    "theme": "dark"\n}\n',
        "{}",
    ):
        path = file_of(client("claude-code"), home)
        path.write_text(given)
        run("install", "claude-code")
        assert servers(client("claude-code"), path)["ghost"]["type"] == "stdio"
        before = json.loads(given)
        after = json.loads(path.read_text())
        after["mcpServers"].pop("ghost")
        assert {"mcpServers": {}, **before} == after
        assert list(after)[: len(before)] == list(before)


@pytest.mark.parametrize("name", [*JSON_CLIENTS, "codex"])
def test_what_a_person_added_to_the_entry_stays(
    name: str, run: Callable[..., Any], home: Path
) -> None:
    one = client(name)
    path = file_of(one, home)
    if one.syntax == "toml":
        path.write_text(
            '[mcp_servers.ghost]\n# slow\nstartup_timeout_sec = 30\ncommand = "old"\nargs = [\n  "a",\n]\n'
            '[mcp_servers.ghost.env]\nGHOST_BACKEND = "docker"\n'
        )
    else:
        old = {"command": "old", "args": ["a"], "env": {"GHOST_BACKEND": "docker"}}
        path.write_text(json.dumps({one.table: {"ghost": old}}, indent=1))
    run("install", name)
    entry = servers(one, path)["ghost"]
    assert entry["env"] == {"GHOST_BACKEND": "docker"}
    assert entry["args"][-1] == "mcp"
    if one.syntax == "toml":
        assert entry["startup_timeout_sec"] == 30
        assert "# slow" in path.read_text()


@pytest.mark.parametrize("name", ["claude-code", "cursor", "vscode", "codex"])
def test_by_url(name: str, run: Callable[..., Any], home: Path) -> None:
    one = client(name)
    path = file_of(one, home)
    run("install", name)
    path.chmod(0o644)
    told = run("install", name, "--http", "http://127.0.0.1:9000", token=TOKEN)
    assert TOKEN not in json.dumps(told)
    entry = servers(one, path)["ghost"]
    assert entry.pop("url") == "http://127.0.0.1:9000/mcp"
    assert entry.pop("http_headers" if name == "codex" else "headers") == {
        "Authorization": f"Bearer {TOKEN}"
    }
    assert entry == ({"type": "http"} if one.typed else {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    told = run("install", name)  # and back to a program
    assert TOKEN not in json.dumps(told)
    assert set(servers(one, path)["ghost"]) == {"command", "args", *(["type"] if one.typed else [])}


@pytest.mark.parametrize(
    ("name", "file", "held"),
    [
        ("claude-code", ".mcp.json", "Bearer ${GHOST_TOKEN}"),
        ("cursor", ".cursor/mcp.json", "Bearer ${env:GHOST_TOKEN}"),
        ("vscode", ".vscode/mcp.json", "Bearer ${env:GHOST_TOKEN}"),
        ("codex", ".codex/config.toml", 'bearer_token_env_var = "GHOST_TOKEN"'),
    ],
)
def test_a_project_s_file_never_holds_a_token(
    name: str, file: str, held: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(
        "install", name, "--scope", "project", "--http", GHOST_TOKEN=TOKEN, HOME=str(tmp_path)
    )
    assert b"names $GHOST_TOKEN" in done.stderr
    text = (tmp_path / file).read_text()
    assert held in text
    assert TOKEN not in text
    assert "http://127.0.0.1:8000/mcp" in text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("claude-code", '{"mcpServers": {', "line 1, column 17: a key is missing"),
        ("claude-code", "{\n // c\n}", "line 2, column 2"),
        ("claude-code", '{"a": 1,}', "a comma before the end"),
        ("claude-code", '{"a": 1, "a": 2}', "a key twice"),
        ("claude-code", "[" * 5000, "nested too deeply"),
        ("claude-code", '{"mcpServers": []}', "mcpServers is not an object"),
        ("claude-code", "[1]", "the whole is not an object"),
        ("claude-code", '{"a": "\n"}', "a string is broken"),
        ("claude-code", '{"a": 01}', "a comma is missing"),
        ("claude-code", '{"a": NaN}', "a value is missing"),
        ("claude-code", "{} {}", "more text after the value"),
        ("vscode", '{"servers": {}', "a comma is missing"),
        ("vscode", "/* never ends", "a value is missing"),
        ("codex", "[mcp_servers\n", "line 1"),
        ("codex", 'mcp_servers = { ghost = { command = "x" } }\n', "not a table of its own"),
        ("codex", 'mcp_servers.ghost.command = "x"\n', "not a table of its own"),
        ("codex", "mcp_servers = 3\n", "not a table"),
        ("codex", "[mcp_servers]\nghost = 3\n", "not a table"),
        ("codex", "[[mcp_servers]]\na = 1\n", "not a table"),
    ],
)
def test_a_broken_file_is_left_alone(
    name: str, text: str, said: str, run: Callable[..., Any], home: Path
) -> None:
    path = file_of(client(name), home)
    path.write_text(text)
    code = {"not": 5, "mcpServers": 5, "the": 5}.get(said.split()[0], 2)
    for word in ("install", "uninstall"):
        told = run(word, name, code=code)
        assert said in told["error"]["message"], told
        assert str(path) in told["error"]["message"]
        assert told["error"]["hint"]
    assert path.read_text() == text
    assert os.listdir(path.parent) in ([path.name], [".claude.json"])


def test_no_plain_text_file(run: Callable[..., Any], home: Path) -> None:
    path = file_of(client("cursor"), home)
    path.write_bytes(b'{"a": "\xff"}')
    assert "not UTF-8" in run("install", "cursor", code=2)["error"]["message"]
    path.unlink()
    os.mkfifo(path)
    assert "not a plain file" in run("install", "cursor", code=2)["error"]["message"]
    path.unlink()
    with path.open("wb") as file:
        file.truncate((16 << 20) + 1)
    assert "larger than 16 MiB" in run("install", "cursor", code=7)["error"]["message"]


def test_a_link_stays_a_link(run: Callable[..., Any], home: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "mcp.json"
    real.parent.mkdir()
    real.write_text("")
    path = file_of(client("cursor"), home)
    path.symlink_to(real)
    run("install", "cursor")
    assert path.is_symlink()
    assert "ghost" in servers(client("cursor"), real)


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root can act for another user")
def test_the_owner_stays(run: Callable[..., Any], home: Path) -> None:
    path = file_of(client("codex"), home)
    path.write_text(TOML)
    os.chown(path, 12345, 12346)
    told = run("install", "codex")
    for one in (path, told["backup"]):
        assert (os.stat(one).st_uid, os.stat(one).st_gid) == (12345, 12346)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "'nosuch' is none of: claude-code"),
        (["claude-desktop", "--http"], "only programs to start"),
        (["claude-desktop", "--scope", "project"], "no file of a project"),
        (["cursor", "--http", "127.0.0.1:8000"], "not an address of a hub"),
        (["cursor", "--http", "file:///etc/passwd"], "not an address of a hub"),
        (["cursor", "--http", "http://h:99999/"], "not an address of a hub"),
        (["cursor", "--http", 'http://h/"\n'], "not an address of a hub"),
        (["cursor", "--http", "http://u:p@h/"], "no user, query or fragment"),
        (["cursor", "--http", "http://h/?token=x"], "no user, query or fragment"),
        (["cursor", "--token-file", "x"], "--token-file is for --http"),
        (["cursor", "--http", "--token-file", "/nowhere/x"], "cannot read /nowhere/x"),
        (["cursor", "--http", "--token-file", "/dev/null"], "holds no token"),
        (["cursor", "--http", "--token-file", "/dev/zero"], "is not a token"),
        (["cursor", "--http", "--token-file", __file__], "is not a token"),
    ],
)
def test_what_cannot_be_meant(
    words: list[str], said: str, run: Callable[..., Any], home: Path
) -> None:
    code = 9 if "claude-desktop" in words else 2
    told = run("install", *words, code=code)
    assert said in told["error"]["message"]
    assert list(home.iterdir()) == []


def test_where_the_files_are() -> None:
    """Linux, macOS and Windows, as the clients' references say."""

    def path(name: str, system: str, home: str, **variables: str) -> str:
        machine = Machine(system=system, home=home, project="/p", variables=variables)
        return client(name).path("user", machine)

    mac, win = "/Users/a", "C:\\Users\\a"
    app = "/Users/a/Library/Application Support"
    roaming = "C:\\Users\\a\\AppData\\Roaming"
    assert path("claude-code", "darwin", mac) == "/Users/a/.claude.json"
    assert path("claude-code", "win32", win) == "C:\\Users\\a\\.claude.json"
    assert path("claude-code", "linux", "/h", CLAUDE_CONFIG_DIR="/c") == "/c/.claude.json"
    assert path("claude-desktop", "darwin", mac) == f"{app}/Claude/claude_desktop_config.json"
    assert path("claude-desktop", "win32", win) == f"{roaming}\\Claude\\claude_desktop_config.json"
    assert path("vscode", "linux", "/h", XDG_CONFIG_HOME="/x") == "/x/Code/User/mcp.json"
    assert path("vscode", "darwin", mac) == f"{app}/Code/User/mcp.json"
    assert path("vscode", "win32", win, APPDATA="D:\\r") == "D:\\r\\Code\\User\\mcp.json"
    assert path("cursor", "win32", win) == "C:\\Users\\a\\.cursor\\mcp.json"
    assert path("codex", "linux", "/h", CODEX_HOME="/c") == "/c/config.toml"
    with pytest.raises(Unsupported, match="no file of a project"):
        client("claude-desktop").path("project", Machine.here())


def test_the_files_to_copy_are_what_is_installed() -> None:
    """configs/clients, with `ghost` as the command."""
    folder = Path(__file__).parents[2] / "configs" / "clients"
    for one in CLIENTS:
        name = {"vscode": "vscode.mcp.json", "codex": "codex.config.toml"}.get(one.name, "mcp.json")
        given = servers(one, folder / name)["ghost"]
        wanted = entry(one, Way(command=("ghost", "mcp")))
        assert {"type": "stdio", **given} == {"type": "stdio", **wanted}

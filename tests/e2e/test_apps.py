"""Desktop, VS Code and JupyterLab of one docker cave, as a person sees them. Pictures are kept in .cache/pictures."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.built_images import BUILD_S, base, built, engine, full_image, full_tree
from tests.e2e import driving
from tests.serving import Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

__all__ = ["base", "built", "engine", "full_image", "full_tree"]

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(BUILD_S),  # whoever comes first builds the image
    pytest.mark.skipif(shutil.which("chromium") is None, reason="not run: there is no chromium"),
]
PICTURES = Path(__file__).parents[2] / ".cache/pictures"
CAVE = "apps"
PATIENCE_MS = 60_000
# Its title tells what has been typed into any page of its kind.
PAGE = """<body style="background: {0}"><input autofocus><script>
const told = () => document.title = "typed: " + (localStorage.typed || "");
document.querySelector("input").oninput = ({{target}}) => {{ localStorage.typed = target.value; told(); }};
told();
</script>"""
COLORS = {"red": (255, 0, 0), "lime": (0, 255, 0)}


@dataclass(frozen=True, slots=True)
class Apps:
    """A hub with a cave, and a person's browser that has entered the hub."""

    hub: Served
    http: httpx2.Client
    context: BrowserContext
    backend: str
    image: str
    cave: str = CAVE

    @contextmanager
    def made(self, *options: str) -> Iterator[None]:
        """Its cave is there."""
        where = (self.cave, "--backend", self.backend)
        _ghost(self.hub, "create", *where, "--memory", "3g", "--image", self.image, *options)
        yield
        _ghost(self.hub, "destroy", *where)

    def tool(self, name: str, **arguments: Any) -> dict[str, Any]:
        answer = self.http.post(f"/v1/{name}", json={"cave": self.cave, **arguments})
        assert answer.status_code < 400, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def shell(self, command: str) -> str:
        return str(self.tool("shell/exec", command=f"export DISPLAY=:1; {command}")["stdout"])

    def upload(self, path: str, content: bytes) -> None:
        where = {"cave": self.cave, "path": path}
        self.http.post("/v1/filesystem/upload", params=where, content=content).raise_for_status()

    def open(self, path: str) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{self.hub.url}{path}")
        return page


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = driving.chromium(tmp_path_factory.mktemp("browser"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["docker", "local"])
def apps(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Apps]:
    """Of a docker cave of the full image, and of a local one of the same files."""
    backend: str = request.param
    image = request.getfixturevalue("full_image" if backend == "docker" else "full_tree")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with serving("--backend", backend) as hub:
        headers = {"Authorization": f"Bearer {hub.token}"}
        with httpx2.Client(base_url=hub.url, headers=headers, timeout=90) as http:
            context = chromium.new_context(viewport={"width": 1440, "height": 960})
            found = Apps(hub, http, context, backend, image)
            found.open(f"/?token={hub.token}").close()
            with found.made("--vnc"):
                yield found
            context.close()


def _ghost(hub: Served, *words: str) -> None:
    argv = [sys.executable, "-m", "ghost_mcp.cli", *words]
    env = {**os.environ, "GHOST_STATE_DIR": str(hub.state)}
    subprocess.run(argv, env=env, check=True, capture_output=True, timeout=90)


EXTENSION = {
    "[Content_Types].xml": """<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="json" ContentType="application/json"/><Default Extension="js" ContentType="text/javascript"/>
<Default Extension="vsixmanifest" ContentType="text/xml"/></Types>""",
    "extension.vsixmanifest": """<PackageManifest Version="2.0.0"
xmlns="http://schemas.microsoft.com/developer/vsx-schema/2011"><Metadata>
<Identity Id="shown" Version="1.0.0" Publisher="tests" Language="en-US"/><DisplayName>Shown</DisplayName></Metadata>
<Installation><InstallationTarget Id="Microsoft.VisualStudio.Code"/></Installation><Dependencies/>
<Assets><Asset Type="Microsoft.VisualStudio.Code.Manifest" Path="extension/package.json" Addressable="true"/></Assets>
</PackageManifest>""",
    "extension/package.json": json.dumps(
        {
            "name": "shown",
            "publisher": "tests",
            "version": "1.0.0",
            "engines": {"vscode": "^1.60.0"},
            "main": "./extension.js",
            "activationEvents": ["onStartupFinished"],
            "contributes": {"commands": [{"command": "shown.ask", "title": "Ask it"}]},
        }
    ),
    "extension/extension.js": """const vscode = require("vscode"), fs = require("fs"), os = require("os");
exports.activate = (context) => {
  const item = vscode.window.createStatusBarItem(vscode.StatusBarAlignment.Left, 1000);
  item.text = `extension in ${os.hostname()}`;
  item.command = "shown.ask";
  item.show();
  context.subscriptions.push(item, vscode.commands.registerCommand("shown.ask", () => {
    const [folder] = vscode.workspace.workspaceFolders;
    fs.writeFileSync(`${folder.uri.fsPath}/from-extension`, "written by an extension");
    vscode.window.showInformationMessage("the extension was asked");
  }));
};""",
}


def extension() -> bytes:
    """A .vsix: what VS Code installs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in EXTENSION.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def until(met: Callable[[], bool], what: str) -> None:
    """Wait for something that no event tells of."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not met():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def keep(page: Page, name: str) -> None:
    page.screenshot(path=PICTURES / f"{name}.png")


def color_of(page: Page) -> tuple[int, ...]:
    """The colour of the picture's middle."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    found = picture.getpixel((picture.width // 3, picture.height // 2))
    assert isinstance(found, tuple)
    return found


@pytest.fixture(scope="module")
def desktop(apps: Apps) -> Page:
    """The desktop, with the agent's browser on it, which starts it again for a cave that was made with one."""
    apps.http.post(f"/v1/caves/{CAVE}/services/vnc/stop").raise_for_status()
    serve_pages(apps)
    page = apps.open(f"/vnc/?cave={CAVE}")
    assert page.url.startswith(f"http://vnc--{CAVE}.caves.localhost:{apps.hub.port}/vnc.html?")
    return page


def serve_pages(apps: Apps) -> None:
    for color in COLORS:
        apps.tool("file/write", path=f"pages/{color}.html", content=PAGE.format(color))
    apps.tool("shell/exec", command="python3 -m http.server -d pages 5000", background=True)


def title(apps: Apps) -> str:
    return str(apps.tool("browser/scroll", to="top")["title"])


def typed(apps: Apps, desktop: Page, text: str) -> bool:
    """Type by hand into the page's field; a window that has just come may miss a click."""
    desktop.mouse.click(80, 104)
    desktop.keyboard.press("Control+a")
    desktop.keyboard.type(text)
    end = time.monotonic() + 3
    while title(apps) != f"typed: {text}" and time.monotonic() < end:
        time.sleep(0.1)
    return title(apps) == f"typed: {text}"


def shown(apps: Apps, color: str, *pages: Page) -> None:
    apps.tool("browser/navigate", url=f"http://localhost:5000/{color}.html")
    for page in pages:
        until(lambda page=page: color_of(page) == COLORS[color], f"the desktop is not {color}")


def test_a_person_sees_and_uses_the_agents_browser(apps: Apps, desktop: Page) -> None:
    for color in COLORS:
        shown(apps, color, desktop)
        keep(desktop, f"desktop-{color}")
    until(lambda: typed(apps, desktop, "by hand"), "what was typed does not arrive")
    keep(desktop, "desktop-typed")


def test_a_browser_that_nobody_saw_comes_to_a_desktop_that_is_opened(apps: Apps) -> None:
    later = replace(apps, cave="later")
    with later.made():
        serve_pages(later)
        outline = later.tool("browser/navigate", url="http://localhost:5000/red.html")["outline"]
        field = outline.split()[0]
        later.tool("browser/type", ref=field, text="by tool")
        desktop = later.open("/vnc/?cave=later")
        until(lambda: color_of(desktop) == COLORS["red"], "the browser is not seen")
        assert title(later) == "typed: by tool"  # which its storage kept
        told = later.tool("browser/type", ref=field, text="again", clear=True)  # the reference, too
        assert told["title"] == "typed: again"
        until(lambda: typed(later, desktop, "by hand"), "what was typed does not arrive")
        keep(desktop, "desktop-later")
        desktop.close()


def pasted(page: Page, text: str) -> None:
    """What the page's panel for the clipboard does with a text."""
    page.evaluate(
        """(text) => { const panel = document.getElementById("noVNC_clipboard_text");
        panel.value = text; panel.dispatchEvent(new Event("change")); }""",
        text,
    )


def test_the_clipboard_and_the_size_follow(apps: Apps, desktop: Page) -> None:
    def arrives() -> bool:
        pasted(desktop, "from outside")
        return apps.shell("timeout 5 xclip -o -selection clipboard") == "from outside"

    until(arrives, "not pasted")
    apps.shell("printf inside | timeout 20 xclip -i -selection clipboard")
    desktop.wait_for_function("document.getElementById('noVNC_clipboard_text').value == 'inside'")
    desktop.set_viewport_size({"width": 1500, "height": 980})
    until(lambda: "current 1500 x 980" in apps.shell("xrandr"), "the desktop keeps its size")


def test_who_may_only_look_changes_nothing(apps: Apps, desktop: Page) -> None:
    shown(apps, "red", desktop)
    looking = apps.open(f"/vnc/?cave={CAVE}&view_only=true")
    assert looking.url.startswith(f"http://vnc-view--{CAVE}.caves.localhost:")
    # The page's own switch is off: what is said ends at the hub all the same.
    looking.goto(looking.url.replace("view_only=true", "view_only=false"))
    until(lambda: color_of(looking) == COLORS["red"], "nothing is seen")
    keep(looking, "desktop-looking")
    told = title(apps)
    looking.mouse.click(80, 104)
    looking.keyboard.type("not this")
    pasted(looking, "nor this")
    apps.shell("printf copied | timeout 20 xclip -i -selection clipboard")
    panel = "document.getElementById('noVNC_clipboard_text').value"
    desktop.wait_for_function(f"{panel} == 'copied'")
    shown(apps, "lime", desktop, looking)  # all said before has arrived, if it could
    assert apps.shell("timeout 5 xclip -o -selection clipboard") == "copied"
    assert looking.evaluate(panel) == "nor this"  # its own
    assert title(apps) == told
    # A pass for looking opens nothing else.
    (cookie,) = [one for one in apps.context.cookies() if one["domain"].startswith("vnc-view--")]
    host = f"vnc--{CAVE}.caves.localhost:{apps.hub.port}"
    told = httpx2.get(
        f"{apps.hub.url}/vnc.html",
        headers={"Host": host, "Cookie": f"{cookie['name']}={cookie['value']}"},
    )
    assert told.status_code == 401
    looking.close()


@pytest.fixture(scope="module")
def code(apps: Apps) -> Page:
    """VS Code on the workspace, which is a git repository, with an extension that a person installed from a file."""
    apps.tool("file/write", path="edited.txt", content="before\n")
    apps.shell("git init -q -b trunk; git config user.name A; git config user.email a@example.org")
    apps.shell("git add edited.txt; git commit -q -m first")
    apps.upload("/tmp/shown.vsix", extension())
    told = apps.shell("code-server --install-extension /tmp/shown.vsix 2>&1")
    assert "was successfully installed" in told, told
    page = apps.open(f"/code-server/?cave={CAVE}")
    assert page.url.startswith(f"http://code-server--{CAVE}.caves.localhost:")
    return page


def test_a_file_is_edited_in_vs_code(apps: Apps, code: Page) -> None:
    code.get_by_role("treeitem", name="edited.txt").dblclick()
    code.get_by_text("before").wait_for()
    code.keyboard.press("Control+End")
    code.keyboard.type("typed in VS Code")
    keep(code, "code-server")
    code.keyboard.press("Control+s")
    until(
        lambda: apps.tool("file/read", path="edited.txt")["content"] == "before\ntyped in VS Code",
        "it is not saved",
    )


def test_an_extension_works_in_vs_code(apps: Apps, code: Page) -> None:
    host = apps.shell("hostname").strip()
    code.get_by_role("button", name=f"extension in {host}").click()  # in its status bar
    code.get_by_text("the extension was asked", exact=True).wait_for()
    keep(code, "code-server-extension")
    assert apps.shell("cat from-extension") == "written by an extension"


def test_a_change_is_committed_in_vs_code(apps: Apps, code: Page) -> None:
    code.get_by_role("button", name="trunk").wait_for()
    code.keyboard.press("Control+Shift+g")
    code.get_by_role("treeitem", name=re.compile("edited.txt.*Modified")).wait_for()
    keep(code, "code-server-changes")
    apps.shell("git add edited.txt")
    code.get_by_role("treeitem", name=re.compile("Staged Changes")).wait_for()
    code.locator(".scm-editor").click()
    code.keyboard.type("second")
    code.keyboard.press("Control+Enter")
    until(lambda: apps.shell("git log --format=%s") == "second\nfirst\n", "nothing is committed")


def test_the_terminal_of_vs_code_is_in_the_cave(apps: Apps, code: Page) -> None:
    code.keyboard.press("Control+Backquote")
    code.locator(".terminal .xterm-helper-textarea").wait_for(state="attached")
    code.keyboard.type("hostname > from-terminal; pwd >> from-terminal\n")
    told = lambda: apps.shell("cat from-terminal 2>/dev/null")
    until(lambda: told().endswith("/workspace\n"), "its terminal is not in the cave")
    assert told().split()[0] == apps.shell("hostname").strip()
    keep(code, "code-server-terminal")


def test_a_cell_runs_in_jupyterlab(apps: Apps) -> None:
    page = apps.open(f"/jupyter/?cave={CAVE}")
    assert page.url.startswith(f"http://jupyter--{CAVE}.caves.localhost:")
    page.get_by_title("Python 3 (ipykernel)").first.click()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # until then it is drawn anew
    cell = page.locator(".jp-Notebook .jp-Cell .cm-content").first
    cell.click()
    page.keyboard.type("6 * 7")
    expect(cell).to_have_text("6 * 7")
    page.keyboard.press("Shift+Enter")
    expect(page.locator(".jp-OutputArea-output").first).to_have_text("42", timeout=PATIENCE_MS)
    keep(page, "jupyterlab")
    page.close()


def test_an_upload_is_dropped_on_the_dashboard(apps: Apps) -> None:
    page = apps.open(f"/#/cave/{CAVE}/files")
    for name in ("Terminal", "Desktop", "VS Code", "JupyterLab"):
        page.get_by_role("link", name=name, exact=True).wait_for()
    given = page.evaluate_handle(
        """() => { const carried = new DataTransfer();
        carried.items.add(new File(["dropped"], "dropped.txt", { type: "text/plain" }));
        return carried; }"""
    )
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": given})
    page.get_by_role("button", name="dropped.txt").wait_for()
    assert apps.tool("file/read", path="dropped.txt")["content"] == "dropped"
    keep(page, "dashboard-dropped")
    page.close()


def test_what_a_cave_lacks_is_told_with_the_way_out(apps: Apps) -> None:
    if shutil.which("code-server"):
        pytest.skip("not run: this machine has it")
    apps.http.post("/v1/caves", json={"name": "bare", "backend": "local"}).raise_for_status()
    page = apps.open("/code-server/?cave=bare")
    page.get_by_text("code-server cannot start: this cave has no").wait_for()
    page.get_by_text("--image ghost-full").wait_for()
    keep(page, "missing")
    page.close()
    apps.http.delete("/v1/caves/bare").raise_for_status()

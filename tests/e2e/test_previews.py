"""Apps that people write, in a cave, seen in a real browser at hosts of their own. Pictures are kept in .cache/pictures."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import httpx2
import pytest

from tests.e2e.driving import MODULES, MOST_S, drive, needs_browser, needs_npm
from tests.serving import serving

APPS = Path(__file__).parent / "apps"
#: What Vite, Flask and Streamlit are made of. A cave sees the node and the python3 of /usr.
VITE = (
    *(
        "vite",
        "rolldown",
        "@rolldown",
        "@oxc-project",
        "postcss",
        "picomatch",
        "tinyglobby",
        "fdir",
    ),
    *("lightningcss", "nanoid", "picocolors", "source-map-js", "detect-libc"),
)
FLASK = ("flask", "werkzeug", "jinja2", "markupsafe", "itsdangerous", "blinker", "click")
STREAMLIT = (
    *("streamlit", "anyio", "certifi", "charset-normalizer", "h11", "idna", "packaging"),
    *("protobuf", "python-multipart", "requests", "starlette", "typing-extensions", "urllib3"),
    *("uvicorn", "websockets"),
)
# From a folder of another name Streamlit takes them for the app's own: a rerun loads them anew, of which native ones die.
PYTHON = "PYTHONPATH=site-packages python3 -m"
QUIETLY = "--server.headless true --browser.gatherUsageStats false"
FILES = {
    "web/index.html": "<!doctype html><title>Vite</title><h1></h1><script type=module src=/main.js></script>",
    "web/main.js": 'document.querySelector("h1").textContent = "Hello one";\nimport.meta.hot.accept();\n',
}


def _tar(parts: Iterable[tuple[str, Path]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, path in parts:
            archive.add(path, name)
        for name, text in FILES.items():
            about = tarfile.TarInfo(name)
            about.size = len(text.encode())
            archive.addfile(about, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _parts() -> Iterable[tuple[str, Path]]:
    yield from ((f"node_modules/{name}", MODULES / name) for name in VITE)
    yield from (
        (f"node_modules/{path.name}", path) for path in MODULES.glob("lightningcss-linux-*")
    )
    for name in (*FLASK, *STREAMLIT):
        for file in distribution(name).files or ():
            if not file.parts[0].startswith("..") and file.suffix != ".pyc":
                yield f"site-packages/{file}", Path(str(file.locate()))
    for name in ("board.py", "counter.py"):
        yield name, APPS / name


@pytest.mark.npm
@pytest.mark.slow
@needs_npm
@needs_browser
@pytest.mark.skipif(not Path("/usr/bin/node").exists(), reason="not run: a cave sees no node")
@pytest.mark.timeout(MOST_S + 60)
def test_vite_flask_and_streamlit_are_seen_and_reloaded() -> None:
    with serving("--backend", "local") as hub:
        headers = {"Authorization": f"Bearer {hub.token}"}
        with httpx2.Client(base_url=hub.url, headers=headers, timeout=60) as http:
            http.post("/v1/caves", json={"name": "apps"}).raise_for_status()
            where = {"path": "all.tar", "cave": "apps"}
            sent = http.post("/v1/filesystem/upload", params=where, content=_tar(_parts()))
            sent.raise_for_status()
            for command, background in (
                ("tar xf all.tar", False),
                ("node node_modules/vite/bin/vite.js web --port 5173", True),
                (f"{PYTHON} flask --app board.py --debug run --port 5000", True),
                (f"{PYTHON} streamlit run counter.py {QUIETLY}", True),
            ):
                body = {"cave": "apps", "command": command, "background": background}
                http.post("/v1/shell/exec", json=body).raise_for_status()
        done = drive("previews.mjs", hub.url, hub.token)
    assert done["hot_ms"] < 60_000

"""What runs beside a compose cave, in a browser: a preview of a side service's port."""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from ghost_mcp import CaveSpec, Ghost, Project
from ghost_mcp.backends.compose.backend import ComposeBackend
from ghost_mcp.testing.basis import until
from tests.security.conftest import engine, roomy_image
from tests.serving import serving

__all__ = ["engine", "roomy_image"]

pytestmark = pytest.mark.docker

_WEB = "mkdir /tmp/web; cd /tmp/web; echo from the side > a.txt; exec python3 -m http.server 8080"


async def test_a_side_service_is_shown_by_its_port(roomy_image: str) -> None:
    instance = f"test-{secrets.token_hex(4)}"
    web = {"image": roomy_image, "command": ["sh", "-c", _WEB], "stop_signal": "SIGKILL"}
    project: Any = Project(file={"services": {"web": web}})
    with serving("--backend", "compose", GHOST_INSTANCE=instance) as hub:
        cache = hub.state / "cache" / "docker"
        async with (
            Ghost(
                backend=ComposeBackend(image=roomy_image, instance=instance, cache=cache)
            ) as ghost,
            await ghost.create(CaveSpec(name="shop", project=project)) as cave,
            hub.client() as http,
            httpx2.AsyncClient(base_url=hub.url, timeout=60) as browser,
        ):
            where = f"/v1/caves/{cave.name}/previews"
            missing = await http.post(where, json={"service": "nothing", "port": 8080})
            assert (missing.status_code, "web" in missing.json()["hint"]) == (404, True)
            link = urlsplit((await http.post(where, json={"service": "web", "port": 8080, "path": "/a.txt"})).json()["url"])  # fmt: skip
            assert link.netloc == f"web-8080--shop.caves.localhost:{hub.port}"
            host = {"Host": link.netloc}
            entered = await browser.get(f"{link.path}?{link.query}", headers=host)
            assert entered.status_code == 303
            cookie = entered.headers["set-cookie"].partition(";")[0]

            async def shown() -> bool:
                answer = await browser.get("/a.txt", headers={**host, "Cookie": cookie})
                return answer.text == "from the side\n"

            await until(shown)
            async with httpx2.AsyncClient(base_url=hub.url, timeout=60) as stranger:
                assert (await stranger.get("/a.txt", headers=host)).status_code == 401

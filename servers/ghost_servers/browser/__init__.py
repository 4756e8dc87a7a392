"""The browser server: Chromium in a cave, driven by Playwright through the cave's link."""

from __future__ import annotations

from ghost_mcp.tool import Toolset
from ghost_servers.browser.click import click
from ghost_servers.browser.navigate import navigate
from ghost_servers.browser.screenshot import screenshot
from ghost_servers.browser.scroll import scroll
from ghost_servers.browser.type import type_

__all__ = ["TOOLSET"]

TOOLSET = Toolset(
    name="browser",
    instructions="A Chromium in the cave. http://localhost:PORT is a server in the cave.",
    tools=(navigate, screenshot, click, type_, scroll),
)

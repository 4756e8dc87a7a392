"""Programs that listen in a cave, shown to people: the preview proxy."""

from __future__ import annotations

from ghost_hub.preview.forward import Upstream, forward
from ghost_hub.preview.hosts import PREVIEW, Link, PreviewHosts
from ghost_hub.preview.routes import port_of, routes

__all__ = ["PREVIEW", "Link", "PreviewHosts", "Upstream", "forward", "port_of", "routes"]

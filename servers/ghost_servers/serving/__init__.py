"""What every tool server is served with: MCP's side of a tool, the caves behind it, stdio."""

from ghost_servers.serving.caves import Caves, Place, Places, SessionCaves
from ghost_servers.serving.resources import CaveResources
from ghost_servers.serving.run import alone, run, run_alone
from ghost_servers.serving.server import Context, Resources, build

__all__ = [
    "CaveResources",
    "Caves",
    "Context",
    "Place",
    "Places",
    "Resources",
    "SessionCaves",
    "alone",
    "build",
    "run",
    "run_alone",
]

"""What every tool server is served with: MCP's side of tools and resources, and stdio."""

from ghost_servers.serving.answers import rendered
from ghost_servers.serving.resources import CaveResources
from ghost_servers.serving.run import alone, run, run_alone
from ghost_servers.serving.server import Context, Resources, build

__all__ = [
    "CaveResources",
    "Context",
    "Resources",
    "alone",
    "build",
    "rendered",
    "run",
    "run_alone",
]

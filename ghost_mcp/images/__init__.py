# Only this package makes images, fetches them, and knows which of an engine's images are Ghost's.
"""Ghost's container images: ``runtime`` and the caves ``slim``, ``desktop``, ``full``.

They are built from ``configs/images``, which ships with the package, by the engine's own BuildKit.
"""

from ghost_mcp.images.building import build
from ghost_mcp.images.known import NAMES, Image, bill_of_materials, listed
from ghost_mcp.images.pulling import pull

__all__ = ["NAMES", "Image", "bill_of_materials", "build", "listed", "pull"]

"""Engines that make caves, behind one seam: see :mod:`ghost_mcp.backends.base`."""

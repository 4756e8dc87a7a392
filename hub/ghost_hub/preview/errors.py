"""What only a proxy has to say."""

from __future__ import annotations

from ghost_mcp.errors import BackendUnavailable

__all__ = ["BadGateway"]


class BadGateway(BackendUnavailable):
    """What answers in the cave does not speak the protocol, or hung up."""

    code, http_status = "bad_gateway", 502

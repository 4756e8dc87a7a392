# Secret values exist in memory, in the sealed store and in a cave's programs. Nothing here logs or shows one.
"""Secrets: kept sealed on disk, given to a cave's programs, masked in what leaves a cave."""

from __future__ import annotations

from ghost_mcp.secrets.source import SecretSource, StoredSecrets

__all__ = ["SecretSource", "StoredSecrets"]

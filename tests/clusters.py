# Only this file says which cluster tests use: that of KUBECONFIG, in a namespace that is theirs.
"""A cluster for tests, or a reason why there is none."""

from __future__ import annotations

import os
import secrets

import pytest

from ghost_mcp.backends.kubernetes.settings import Settings

__all__ = ["NAMESPACE", "needed", "own_settings"]

NAMESPACE = os.environ.get("GHOST_TEST_CLUSTER_NAMESPACE", "ghost-test")


def needed() -> None:
    """Skip the test where there is no cluster."""
    if "KUBECONFIG" not in os.environ:
        pytest.skip("not run: KUBECONFIG names no cluster")


def own_settings(purpose: str, image: str, runtime_image: str) -> Settings:
    """For caves of an instance that nobody else uses, of images that the node has."""
    needed()
    return Settings(
        namespace=NAMESPACE,
        instance=f"{purpose}-{secrets.token_hex(4)}",
        image=image,
        runtime_image=runtime_image,
        pull_policy="Never",
    )

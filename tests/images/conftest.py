"""The images these tests look into are built once for each machine."""

from tests.built_images import base, built, engine

__all__ = ["base", "built", "engine"]

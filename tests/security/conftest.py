"""What these tests need of an engine is made as the contract suite makes it."""

from tests.contract.conftest import engine, small_image

__all__ = ["engine", "small_image"]

"""The decoders' own tests."""

import pytest


@pytest.fixture(autouse=True)
def shared_decoders() -> None:
    """Each pool here starts and ends its own process."""

"""One local Ray for the tests of this folder that need only *a* Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mgdm_ray.runtime import engine


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    """Started as a study starts it."""
    with engine.cluster(None):
        yield

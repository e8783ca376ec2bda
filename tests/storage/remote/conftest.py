"""What is stored in a bucket must hold for every kind of bucket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.storage.remote.gcs_server import gcs_server
from tests.storage.remote.server import s3_server


@pytest.fixture(scope="module", params=[s3_server, gcs_server], ids=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty bucket of a real HTTP server; other processes see it, too."""
    with request.param() as url:
        yield url

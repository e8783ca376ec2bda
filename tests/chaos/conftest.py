"""The undisturbed study, which all disturbed ones are compared with: it runs once."""

from __future__ import annotations

import random

import pytest

from tests.chaos.storm import Storm


@pytest.fixture(scope="session")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Storm:
    made = Storm(tmp_path_factory.mktemp("storm"), random.Random(20_261_125), kills=10)
    made.rest()
    return made

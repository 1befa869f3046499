"""Fixtures of the unit tests."""

import pytest
import wan_random


@pytest.fixture(scope="session")
def wan():
    """Builders of tiny random Wan models: `random_transformer`, `random_pipeline`, `denoise`."""
    return wan_random


@pytest.fixture
def pipe(wan):
    """A tiny random `WanPipeline`."""
    return wan.random_pipeline()

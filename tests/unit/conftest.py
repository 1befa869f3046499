"""Fixtures of the unit tests."""

import importlib.util
from pathlib import Path

import pytest


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def wan():
    """Builders of tiny random Wan models: `random_transformer`, `random_pipeline`, `denoise`."""
    return _load("wan_random")


@pytest.fixture
def pipe(wan):
    """A tiny random `WanPipeline`."""
    return wan.random_pipeline()

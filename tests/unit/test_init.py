"""The package's front door."""

import subprocess
import sys

import pytest

import tapvideo


@pytest.mark.parametrize("name", tapvideo.__all__)
def test_every_public_name_is_there(name):
    assert getattr(tapvideo, name).__name__ == name
    assert name in dir(tapvideo)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'enable_nothing'"):
        tapvideo.enable_nothing  # noqa: B018


def test_importing_the_package_loads_no_torch():
    code = "import sys, tapvideo; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

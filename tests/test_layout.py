import importlib

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("package", ["backbone", "tokenizer", "latent", "discrete", "eval", "pipelines"])
def test_packages_resolve_inside_the_repository(package):
    """`tokenizer` and `eval` are also names of other things: what is imported must be ours."""
    origin = importlib.import_module(package).__file__
    assert origin == str(ROOT / package / "__init__.py")

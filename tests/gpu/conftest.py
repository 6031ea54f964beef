"""Everything here needs a CUDA device; where there is none, each test skips itself and says so."""

import pytest


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "tests/gpu/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))

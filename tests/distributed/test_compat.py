"""Patches on other packages: refused where they would meet nothing, and needed as long as they say."""

import subprocess
import sys
import types

import pytest

from megatron_sky.distributed import compat
from megatron_sky.errors import RunError


def test_a_member_that_is_there_is_replaced():
    module = types.SimpleNamespace(__name__="megatron.core.utils", impl=1)
    compat.replace_members(module, impl=2)
    assert module.impl == 2


def test_a_member_that_is_gone_is_named():
    module = types.SimpleNamespace(__name__="megatron.core.utils", impl=1)
    with pytest.raises(RunError, match=r"^megatron: megatron\.core\.utils has no imple in the installed version"):
        compat.replace_members(module, imple=2)
    assert not hasattr(module, "imple")


ALONE = """
import io, os, sys
from types import SimpleNamespace
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner

class Program:
    def __reduce__(self):
        return os.mkdir, (sys.argv[1],)

saved = io.BytesIO()
torch.save(Program(), saved)
saved.seek(0)
planner = DefaultLoadPlanner(flatten_state_dict=False)
planner.state_dict = {}
planner.load_bytes(SimpleNamespace(dest_index=SimpleNamespace(fqn="key")), saved)
"""


def test_torch_alone_still_runs_what_an_object_names(tmp_path):
    """Where this fails, `read_objects_as_data` is no longer needed."""
    subprocess.run([sys.executable, "-c", ALONE, str(tmp_path / "ran")], check=True)
    assert (tmp_path / "ran").is_dir()

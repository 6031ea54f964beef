"""Patches on other packages: refused where they would meet nothing, and needed as long as they say."""

import ast
import subprocess
import sys
import types
from pathlib import Path

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


# Names with a leading underscore that the package takes from others: what a release of theirs may change unsaid.
PRIVATE = {
    "_internal": "torch.testing, where its process group for trials lies",
    "_device": "torch.utils",
    "_device_constructors": "torch.utils._device",
    "_foreach_copy_": "torch",
    "_foreach_mul_": "torch",
    "_foreach_norm": "torch",
    "_scaled_mm": "torch",
    "_is_mkldnn_bf16_supported": "torch.ops.mkldnn",
    "_is_mkldnn_fp16_supported": "torch.ops.mkldnn",
    "_record_memory_history": "torch.cuda.memory",
    "_dump_snapshot": "torch.cuda.memory",
    "_StorageInfo": "torch.distributed.checkpoint.filesystem",
    "_results_queue": "megatron.core.dist_checkpointing.strategies.filesystem_async",
    "_write_item": "torch.distributed.checkpoint.filesystem, in megatron-core's filesystem_async",
    "_get_main_param_and_optimizer_states": "megatron-core's DistributedOptimizer",
    "_set_main_param_and_optimizer_states": "megatron-core's DistributedOptimizer",
    "_apply_rotary_pos_emb_bshd": "megatron.core.models.common.embeddings.rope_utils",
    "_MODEL_PARALLEL_RNG_TRACKER_NAME": "megatron.core.tensor_parallel.random",
    "_special_tokens": "tiktoken's Encoding",
    "_forward_hooks": "torch.nn.Module",
    "_replace": "a named tuple: megatron-core's AsyncRequest",
    "_exit": "os",
    "_getframe": "sys",
    "_python_dispatch": "torch.utils",
    "_overloadpacket": "torch's operators",
    "_qualified_op_name": "torch's operators",
    "_cdata": "torch.UntypedStorage",
    "_local_scalar_dense": "torch.ops.aten",
    "_transpose": "Transformer Engine's 8-bit tensors",
    "_columnwise_data": "Transformer Engine's 8-bit tensors",
    "_fp8_dtype": "Transformer Engine's 8-bit tensors",
    "_canonicalized_amax_reduction_group": "Transformer Engine's quantizers",
    "_ub_communicators": "transformer_engine.pytorch.module.base",
    "_is_text_encoding": "codecs.CodecInfo",
    "_to_copy": "torch.ops.aten",
    "_disable_current_modes": "torch.utils._python_dispatch",
    "_dispatch": "torch.nn.attention.bias.CausalBias",
    "_flash_attention_forward": "torch.ops.aten",
    "_flash_attention_backward": "torch.ops.aten",
    "_efficient_attention_forward": "torch.ops.aten",
    "_efficient_attention_backward": "torch.ops.aten",
    "_scaled_dot_product_attention_math": "torch.ops.aten",
    "_scaled_dot_product_efficient_attention": "torch.ops.aten",
    "_scaled_dot_product_efficient_attention_backward": "torch.ops.aten",
    "_scaled_dot_product_flash_attention": "torch.ops.aten",
    "_scaled_dot_product_flash_attention_backward": "torch.ops.aten",
}


def test_private_names_of_other_packages_are_these():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(compat.__file__).parents[1].rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    foreign = {
        word
        for node in nodes
        if isinstance(node, ast.ImportFrom) and not node.module.startswith("megatron_sky")
        for word in [*node.module.split("."), *(alias.name for alias in node.names)]
    }
    foreign |= {node.attr for node in nodes if isinstance(node, ast.Attribute)} - own
    assert {name for name in foreign if name.startswith("_") and not name.startswith("__")} == PRIVATE.keys()

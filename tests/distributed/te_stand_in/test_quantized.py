"""What an 8-bit tensor lies in, by recipe and direction."""

from types import SimpleNamespace

import pytest

from megatron_sky.distributed.te_stand_in import quantized


def parts(kind: str, shape, any_direction: bool = False, **settings) -> dict[str, tuple]:
    quantizer = SimpleNamespace(**({"rowwise_usage": True, "columnwise_usage": True} | settings))
    tensors = quantized._PARTS[kind](quantizer, shape, any_direction)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}


def test_one_scale_for_a_tensor_and_a_transposed_copy_before_blackwell():
    whole = {"data": (6, 4, 8), "data_transpose": (8, 6, 4), "fp8_scale_inv": (1,)}
    assert parts("Float8Quantizer", (6, 4, 8)) == whole
    for_blackwell = parts("Float8CurrentScalingQuantizer", (6, 4, 8), any_direction=True)
    assert for_blackwell == {"data": (6, 4, 8), "fp8_scale_inv": (1,)}
    alone = parts("Float8Quantizer", (6, 4, 8), rowwise_usage=False)
    assert alone == {"data_transpose": (8, 6, 4), "fp8_scale_inv": (1,)}


def test_a_scale_for_32_numbers():
    assert parts("MXFP8Quantizer", (64, 2, 96)) == {
        "rowwise_data": (64, 2, 96),
        "rowwise_scale_inv": (128, 4),
        "columnwise_data": (64, 2, 96),
        "columnwise_scale_inv": (4, 128),
    }
    with pytest.raises(ValueError, match="divisible by 32"):
        parts("MXFP8Quantizer", (64, 40))


def test_a_scale_for_a_block():
    square = parts("Float8BlockQuantizer", (256, 384), block_scaling_dim=2)
    assert square["rowwise_scale_inv"] == (2, 4) and square["columnwise_scale_inv"] == (3, 4)
    assert square["columnwise_data"] == (384, 256)
    rows = parts("Float8BlockQuantizer", (250, 384), block_scaling_dim=1)
    assert rows["rowwise_scale_inv"] == (3, 252) and rows["columnwise_scale_inv"] == (2, 384)
    compact = parts("Float8BlockQuantizer", (250, 384), block_scaling_dim=1, all_gather_usage=True)
    assert compact["rowwise_scale_inv"] == (250, 3) and compact["columnwise_data"] == (250, 384)


def test_a_recipe_that_is_not_known_is_named():
    with pytest.raises(quantized.UnknownToRehearsal, match="SimpleNamespace"):
        quantized.empty(SimpleNamespace(), (1, 1), None, any_direction=False)

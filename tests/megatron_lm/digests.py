"""A checkpoint's weights as a few numbers: of each kind of weight, over all layers, the sum and the root of the sum of
squares."""

import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.reader.lazy import as_float32
from megatron_sky.checkpoint.reader.torch_dist import read_stored, weight_tensors


def weight_digests(folder: Path) -> dict[str, list[float]]:
    """Kind of weight -> [sum, norm] of a torch_dist checkpoint, Megatron-LM's or ours."""
    sums: dict[str, float] = defaultdict(float)
    squares: dict[str, float] = defaultdict(float)
    for name, tensor in weight_tensors(folder, read_stored(folder)).items():
        if tensor.is_weight:
            kind = re.sub(r"^decoder\.layers\.\d+\.", "", name)
            numbers = as_float32(tensor.load(), tensor.dtype).astype(np.float64)
            sums[kind] += float(numbers.sum())
            squares[kind] += float((numbers**2).sum())
    return {kind: [sums[kind], math.sqrt(squares[kind])] for kind in sorted(sums)}

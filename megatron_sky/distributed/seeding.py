"""Random numbers without a state to save: every step seeds its generators from (seed, step, place in the layout).

So a resumed run draws what the uninterrupted one drew, and a checkpoint holds no generator states. The ranks of one
tensor-parallel group share the default generator (they hold the same activations) and differ in megatron-core's
model-parallel one (they hold different parts); data, context and pipeline ranks differ in both.
"""

import hashlib


def step_seed(seed: int, step: int, pp_rank: int, dp_rank: int, cp_rank: int) -> int:
    """A 31-bit seed: megatron-core adds small offsets to it, and torch takes at most 64 bits."""
    text = f"megatron_sky/{seed}/{step}/{pp_rank}/{dp_rank}/{cp_rank}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def tensor_seed(seed: int, key: str) -> int:
    """A 63-bit seed for the initial values of the tensor named `key`, the same in every layout."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") >> 1

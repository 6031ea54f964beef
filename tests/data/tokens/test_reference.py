"""A reference is read on the base and the data that it was made for, and is whole."""

import numpy as np
import pytest

from megatron_sky.data.tokens.reference import read_reference, reference_path, write_reference
from megatron_sky.errors import CheckpointError


def test_a_reference_of_another_base_or_pair_is_refused(tmp_path):
    prefix, base, pair = tmp_path / "a", "ab" * 32, "cd" * 16
    assert read_reference(prefix, 3, base=base, pair=pair) is None
    write_reference(prefix, np.arange(3), base=base, pair=pair)
    assert read_reference(prefix, 3, base=base, pair=pair).tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match=r"of another base \(abab.*finetune.base \(efef"):
        read_reference(prefix, 3, base="ef" * 32, pair=pair)
    with pytest.raises(CheckpointError, match="belongs to other tokens"):
        read_reference(prefix, 3, base=base, pair="00" * 16)
    path = reference_path(prefix)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="or damaged"):
        read_reference(prefix, 3, base=base, pair=pair)
    path.write_bytes(b"#" * 200)
    with pytest.raises(CheckpointError, match="is no file of reference"):
        read_reference(prefix, 3, base=base, pair=pair)

"""The stand-in knows what it knows, and says the name of what it does not."""

import pytest

from tests.distributed.te_stand_in.watch import Notes, stand_in


def test_a_kernel_that_is_not_known_can_be_imported_and_fails_by_name_when_it_is_called():
    notes = Notes()
    kernel = stand_in(notes).moe_permute_fwd
    assert notes.kernels == []
    with pytest.raises(NotImplementedError, match="Transformer Engine's kernel moe_permute_fwd is not known"):
        kernel(1, 2)
    assert notes.kernels == ["moe_permute_fwd"]


def test_a_kernel_is_called_by_its_name():
    notes = Notes()
    extension = stand_in(notes)
    assert extension.multi_tensor_adam([], None) is None and notes.kernels == ["multi_tensor_adam"]
    with pytest.raises(AttributeError):
        getattr(extension, "__wrapped__")  # noqa: B009

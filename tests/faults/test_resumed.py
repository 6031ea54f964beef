"""What a resume does with what was changed since."""

import pytest

from tests.faults.test_faults import expected, hurt, losses, run_dir, unhurt  # noqa: F401 (fixtures)


@pytest.mark.parametrize(
    "edit",
    ["optimizer.adam_beta1=0.5", "optimizer.adam_beta2=0.5", "optimizer.adam_eps=0.1", "optimizer.clip_grad=0.01"],
)
def test_the_optimizers_numbers_are_applied_on_resume(edit, hurt, run_dir, expected):  # noqa: F811
    assert hurt("train.max_steps=8").code == 0
    assert hurt(edit).code == 0
    assert losses(run_dir)[:9] == expected[:9]
    assert losses(run_dir)[9] != expected[9]

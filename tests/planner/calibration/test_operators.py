"""What is timed can be run again and again, in each format."""

from tests.planner.calibration import workers


def test_each_operator_runs_again(ranks):
    (kinds,) = ranks(1, workers.run_each_twice, ("fp32", "bf16"))
    assert {"product_weight_gradient", "attention_backward", "plain_layer_backward", "loss", "update"} <= set(kinds)


def test_operands_may_be_larger_than_the_memory_of_cold_ones(ranks):
    (kinds,) = ranks(1, workers.run_larger_than_pool)
    assert {"product_forward", "product_weight_gradient", "attention_forward", "attention_backward"} <= set(kinds)

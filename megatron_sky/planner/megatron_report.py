"""The report of Megatron-LM's tools/report_theoretical_memory.py, from its flags, by this program's closed forms."""

from collections.abc import Sequence

from pydantic import ValidationError

from megatron_sky.config import Config
from megatron_sky.config.validate import check
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.migrate.readings import translate_script
from megatron_sky.migrate.text import read_arguments
from megatron_sky.migrate.translation import TO_GIVE
from megatron_sky.planner.hardware import cluster_of, find_gpu
from megatron_sky.planner.job import Job
from megatron_sky.planner.memory import stage_memory
from megatron_sky.planner.parameters import embedding_parameters, head_parameters, stage_parameters
from megatron_sky.records import problem_of

_MIB = 1 << 20
_ANY_GPU = "a100"  # memory does not depend on it


def theoretical_memory(arguments: Sequence[str], world_size: int | None = None) -> list[str]:
    """Its lines: parameters, and the bytes of the fullest rank, by pipeline stage. `world_size`: by default as few
    ranks as the parallel sizes need.

    Raises ConfigError for flags that no recipe comes of, and for sizes that do not divide.
    """
    config = _config(arguments, world_size)
    p = config.parallel
    world_size = world_size or p.tp_size * p.pp_size * p.cp_size
    check(config, world_size)
    job = Job.of(config, cluster_of(find_gpu(_ANY_GPU)), world_size)
    tp, pp = job.layout.tp_size, job.layout.pp_size
    shards = [stage_parameters(job, stage) for stage in range(pp)]
    ends = (embedding_parameters(job) + head_parameters(job)) * tp
    total = sum(shards) * tp
    lines = [
        f"Number of parameters in transformer layers in billions: {(total - ends) / 1e9:.2f}",
        f"Number of parameters in embedding layers in billions: {ends / 1e9:.2f}",
        f"Total number of parameters in billions: {total / 1e9:.2f}",
        f"Number of parameters in most loaded shard in billions: {max(shards) / 1e9:.4f}",
    ]
    if pp > 1:
        lines.append(f"Number of parameters in other shards in billions: {min(shards) / 1e9:.4f}")
    memory = [stage_memory(job, stage) for stage in range(pp)]
    for stage, each in enumerate(memory):
        activation = each.activations + each.logits + each.working
        lines.append(
            f"{'Theoretical memory footprints' if pp == 1 else f'Stage {stage}'}: weight and "
            f"optimizer={each.state / _MIB:.2f} MB, activation={activation / _MIB:.2f} MB, "
            f"total={(each.state + activation) / _MIB:.2f} MB"
        )
    fullest = max(each.total for each in memory)
    return [*lines, f"With collectives' buffers and the framework, a GPU needs {fullest / _MIB:.2f} MB at its peak"]


def _config(arguments: Sequence[str], world_size: int | None) -> Config:
    """The flags as a recipe; what memory does not depend on may be left out."""
    translation = translate_script(read_arguments(list(arguments)))
    recipe = {
        section: {name: value for name, value in fields.items() if value != TO_GIVE}
        for section, fields in translation.recipe.items()
        if section in ("model", "parallel", "precision", "train")
    }
    train, parallel = recipe.setdefault("train", {}), recipe.get("parallel", {})
    split = parallel.get("tp_size", 1) * parallel.get("pp_size", 1) * parallel.get("cp_size", 1)
    train.setdefault("micro_batch_size", 1)
    # as many micro batches as stages, so that the pipeline is full
    usual = train["micro_batch_size"] * max(1, (world_size or split) // split) * parallel.get("pp_size", 1)
    train.setdefault("global_batch_size", usual)
    train |= {"tokens": 1, "run_dir": "runs/none"}
    recipe["schedule"] = {"lr": 1e-4}
    try:
        return Config.model_validate(recipe)
    except ValidationError as error:
        problems = [
            problem_of(each, ".".join(map(str, each["loc"])), "give the flag of it")
            for each in error.errors(include_url=False)
        ]
        raise ConfigError(problems or Problem("flags", str(error))) from None

"""The two layouts of a configuration, as one list of keys with Megatron Bridge's names.

| layout | file | its sections |
| --- | --- | --- |
| Megatron Bridge | `run_config.yaml`, in each checkpoint's folder | model, train, optimizer, scheduler, dataset, ... |
| NeMo 2 | the YAML of a recipe (`nemo llm pretrain --yaml`, NeMo-Run) | data, log, model.config, optim, trainer |
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_sky.errors import ConfigError, Problem

BRIDGE = (
    *("tokenizer", "dataset", "model", "optimizer", "ddp", "train", "validation", "scheduler", "logger", "checkpoint"),
    *("dist", "rng", "profiling", "rerun_state_machine", "mixed_precision", "comm_overlap"),
)
"""Sections of Megatron Bridge; the later ones win where they say the same thing."""
OVERRIDE = ("mixed_precision", "comm_overlap", "trainer.plugins")
"""Sections whose false counts too: they are written over the others."""
MIXED_PRECISION = {
    "bf16": {"bf16": True, "grad_reduce_in_fp32": True},
    "bf16_mixed": {"bf16": True, "grad_reduce_in_fp32": True},
    "bf16-mixed": {"bf16": True, "grad_reduce_in_fp32": True},
    "fp16_mixed": {"fp16": True, "grad_reduce_in_fp32": False},
    "16-mixed": {"fp16": True, "grad_reduce_in_fp32": False},
}
_NEMO = {
    # of NeMo 2, where a key has another name: (path -> name of Megatron Bridge)
    "data.paths": "data_path",
    "data.index_mapping_dir": "path_to_cache",
    "data.seed": "random_seed",
    "trainer.max_steps": "train_iters",
    "trainer.val_check_interval": "eval_interval",
    "trainer.limit_val_batches": "eval_iters",
    "trainer.log_every_n_steps": "log_interval",
    "optim.lr_scheduler.warmup_steps": "lr_warmup_iters",
    "optim.lr_scheduler.min_lr": "min_lr",
    "optim.lr_scheduler.max_steps": "lr_decay_iters",
    "log.log_dir": "save",
    "log.wandb.project": "wandb_project",
    "log.wandb.name": "wandb_exp_name",
    "log.ckpt.every_n_train_steps": "save_interval",
    "log.ckpt.save_top_k": "most_recent_k",
}
_NEMO_SECTIONS = (
    "model.config",
    "optim.config",
    "optim.lr_scheduler",
    "data",
    "trainer.strategy",
    "trainer.strategy.ddp",
    "trainer.plugins",
    "trainer",
    "log",
    "log.ckpt",
    "log.wandb",
)
_STYLES = {"CosineAnnealingScheduler": "cosine", "CosineAnnealing": "cosine", "WarmupHoldPolicyScheduler": "constant"}


@dataclass(frozen=True)
class Key:
    path: str
    """As the file has it."""
    name: str
    """Megatron Bridge's."""
    value: object


def keys_of(tree: object, file: str) -> list[Key]:
    """Every value of the file that is not a mapping. Raises ConfigError where the file has neither layout."""
    sections = tree if isinstance(tree, dict) else {}
    model = sections.get("model")
    if isinstance(model, dict) and isinstance(sections.get("train"), dict):
        return list(_of_bridge(sections, file))
    if isinstance(model, dict) and isinstance(model.get("config"), dict) and "trainer" in sections:
        return list(_of_nemo(sections))
    lacks = "has no sections model and train" if "trainer" not in sections else "has no model.config"
    fix = "give a checkpoint's run_config.yaml, or the YAML of a NeMo 2 recipe; their overrides alone tell no model"
    raise ConfigError(Problem(file, f"{lacks}: no whole configuration of Megatron Bridge or NeMo 2", fix))


def _of_bridge(sections: dict, file: str) -> Iterator[Key]:
    if (kind := _target(sections.get("dataset"))) and kind not in ("GPTDatasetConfig", "GPTFIMDatasetConfig"):
        fix = "give the configuration of a pretraining on .bin/.idx files"
        raise ConfigError(Problem(f"{file}: dataset", f"is of {kind}, which is no pretraining", fix))
    for section in sorted(sections, key=lambda name: BRIDGE.index(name) if name in BRIDGE else -1):
        given = sections[section]
        if section == "mixed_precision" and isinstance(given, str):
            given = MIXED_PRECISION.get(given.lower(), given)
        if section == "_target_":
            continue
        if section not in BRIDGE or not isinstance(given, dict):
            yield Key(section, section, given)
            continue
        for name, value in given.items():
            inner = value if name == "transformer" and isinstance(value, dict) else {name: value}
            prefix = f"{section}.{name}" if inner is value else section
            yield from _leaves(prefix, inner)


def _of_nemo(sections: dict) -> Iterator[Key]:
    for path in _NEMO_SECTIONS:
        here: object = sections
        for part in path.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        if not isinstance(here, dict):
            continue
        if path == "optim.lr_scheduler":
            style = _target(here)
            yield Key(f"{path}._target_", "lr_decay_style", _STYLES.get(style or "", style))
        for key in _leaves(path, here):
            if key.name == "precision" and key.value in MIXED_PRECISION:
                for name, value in MIXED_PRECISION[str(key.value)].items():
                    yield Key(key.path, name, value)
                continue
            yield Key(key.path, _NEMO.get(key.path, key.name), key.value)
    for section in set(sections) - {"model", "optim", "data", "trainer", "log", "_target_", "_partial_"}:
        yield Key(section, section, sections[section])


def _leaves(prefix: str, section: dict) -> Iterator[Key]:
    for name, value in section.items():
        if not name.startswith("_") and not (isinstance(value, dict) and f"{prefix}.{name}" in _NEMO_SECTIONS):
            yield Key(f"{prefix}.{name}", name, _plain(value))


def _plain(value: object) -> object:
    """An object of Python by the last part of its name, an enum by its member's; what else there is as it is."""
    if isinstance(value, dict):
        return value["_name_"] if "_name_" in value else _target(value) or value
    return value


def _target(value: object) -> str | None:
    target = value.get("_target_") if isinstance(value, dict) else None
    return target.rpartition(".")[2] if isinstance(target, str) else None

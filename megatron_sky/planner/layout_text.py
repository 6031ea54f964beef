"""A layout as people write it (`DP256 x PP2`, `tp2 pp4 mb2 full`), in and out of a recipe."""

import re

from megatron_sky.config import Config, strict_yaml
from megatron_sky.config.schema import Fp8Config
from megatron_sky.errors import ConfigError, Problem

_SIZES = {"tp": "tp_size", "pp": "pp_size", "vpp": "vpp_size", "cp": "cp_size"}
_HINT = (
    "write it as 'TP2 x PP4 x DP64', and if need be VPP, CP, MB (micro batch), sp, zero1, full, selective, none, fp8"
)


def apply_layout(config: Config, text: str, world_size: int) -> Config:
    """The recipe in the layout that `text` names; sizes that it leaves out are 1, all else stays as it is.

    Raises ConfigError for words that are none, and for a data-parallel size that does not come out.
    """
    words = [word for word in re.split(r"[\s,+*]+|(?<=\d)x(?=\D)", text.lower()) if word not in ("", "x")]
    sizes = dict.fromkeys(_SIZES, 1)
    parallel: dict[str, object] = {"sequence_parallel": None}
    train: dict[str, object] = {}
    precision: dict[str, object] = {}
    problems, dp = [], None
    if not words:
        problems.append(Problem("--explain", "names no layout", f"{_HINT}; 'own' is the recipe's", text))
    for word in words:
        match = re.fullmatch(r"(tp|pp|vpp|cp|dp|mb)(\d+)", word)
        if match and int(match[2]) >= 1:
            name, size = match[1], int(match[2])
            if name == "dp":
                dp = size
            elif name == "mb":
                train["micro_batch_size"] = size
            else:
                sizes[name] = size
        elif word in ("none", "selective", "full"):
            train["recompute"] = word
        elif word in ("sp", "zero1"):
            parallel["sequence_parallel" if word == "sp" else "distributed_optimizer"] = True
        elif word in ("fp8", "bf16"):
            precision["fp8"] = (config.precision.fp8 or Fp8Config()) if word == "fp8" else None
        else:
            problems.append(Problem("--explain", f"{word!r} is no part of a layout", _HINT, text))
    split = sizes["tp"] * sizes["pp"] * sizes["cp"]
    if not problems and dp is not None and dp * split != world_size:
        rule = f"makes {dp * split} ranks, not {world_size}"
        problems.append(Problem("--explain", rule, "leave DP out, or give the --gpus that the sizes multiply to", text))
    if problems:
        raise ConfigError(problems)
    if parallel["sequence_parallel"] is None:
        parallel["sequence_parallel"] = sizes["tp"] > 1 and config.parallel.sequence_parallel
    parallel |= {_SIZES[name]: size for name, size in sizes.items()}
    return with_updates(config, parallel, train, precision)


def with_updates(config: Config, parallel: dict, train: dict, precision: dict) -> Config:
    """The recipe with some fields changed; `config.validate` has the last word on it."""
    return config.model_copy(
        update={
            "parallel": config.parallel.model_copy(update=parallel),
            "train": config.train.model_copy(update=train),
            "precision": config.precision.model_copy(update=precision),
        }
    )


def layout_words(config: Config, world_size: int) -> str:
    """The layout as `apply_layout` reads it."""
    p, t = config.parallel, config.train
    dp = world_size // (p.tp_size * p.pp_size * p.cp_size)
    sizes = {"DP": dp, "TP": p.tp_size, "PP": p.pp_size, "VPP": p.vpp_size, "CP": p.cp_size}
    words = [f"{name}{size}" for name, size in sizes.items() if size > 1 or name == "DP"]
    extra = [f"MB{t.micro_batch_size}"]
    extra += ["sp"] if p.sequence_parallel else []
    extra += ["zero1"] if p.distributed_optimizer and dp * p.cp_size > 1 else []
    extra += [t.recompute] if t.recompute != "none" else []
    extra += ["fp8"] if config.precision.fp8 is not None else []
    return " x ".join(words) + " " + " ".join(extra)


def overlay(config: Config) -> str:
    """What makes the layout, as YAML that `train` takes over the recipe."""
    p, t, fp8 = config.parallel, config.train, config.precision.fp8
    names = ("tp_size", "pp_size", "vpp_size", "cp_size", "sequence_parallel", "distributed_optimizer")
    overlaps = ("overlap_grad_reduce", "overlap_param_gather", "tp_comm_overlap")
    return strict_yaml.dump(
        {
            "parallel": {name: getattr(p, name) for name in (*names, *overlaps)},
            "precision": {"fp8": None if fp8 is None else fp8.model_dump(mode="json")},
            "train": {"micro_batch_size": t.micro_batch_size, "recompute": t.recompute},
        }
    )

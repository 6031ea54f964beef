"""Megatron Bridge's `run_config.yaml` and NeMo 2's YAML as a recipe, by way of Megatron-LM's arguments.

Each key becomes the argument that it is in Megatron-LM, and `recipe` maps that one; the answers then name the key.
Keys that turn nothing on (null, false, or of a feature that another key leaves off) are counted, not listed.
"""

import re
from collections import Counter
from pathlib import Path

import yaml

from megatron_sky.config import strict_yaml
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.migrate import flags, nemo_keys
from megatron_sky.migrate.limits import MAX_BYTES
from megatron_sky.migrate.nemo_layouts import OVERRIDE, Key, keys_of
from megatron_sky.migrate.recipe import translate
from megatron_sky.migrate.translation import TO_GIVE, Translation

FIX = "give the run_config.yaml of a checkpoint's folder, or the YAML of a NeMo 2 recipe"


def read_configuration(path: Path) -> object:
    """The file's plain values. Raises ConfigError where it is no YAML of plain values."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(Problem(str(path), f"has more than {MAX_BYTES:,} bytes", FIX))
        return strict_yaml.load(text.decode("utf-8"), path.name)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(Problem(str(path), f"can't be read as YAML: {error}", FIX)) from None


def translate_configuration(tree: object, *, name: str, same_order: bool = False) -> Translation:
    """The recipe that trains what the configuration `tree` of the file `name` would train.

    Raises ConfigError where it is no whole configuration of Megatron Bridge or NeMo 2.
    """
    found = Found(keys_of(tree, name))
    words = [*_model(found), *_data(found), *_training(found)]
    seed, nodes, gpus = (found.value(key) for key in ("random_seed", "num_nodes", "devices"))
    for key in found.left.values():
        words += found.words_of(key)
    done = translate(words, same_order=same_order)
    for leaf, needed in nemo_keys.MODEL.items():
        if needed not in found.by_name:
            _give(done, f"model.{leaf}", f"the file does not say {needed}: its default is the model's class's")
    if seed is not None:
        done.recipe["data"]["seed"] = seed
        done.mapped = [line for line in done.mapped if " -> data.seed: " not in line]
        done.mapped.append(f"{found.by_name['random_seed'].path} {seed} -> data.seed: {seed}")
    done.nodes, done.gpus_per_node = (count if isinstance(count, int) else None for count in (nodes, gpus))
    found.tell(done)
    return done


def _give(done: Translation, key: str, why: str) -> None:
    section, leaf = key.split(".")
    done.recipe[section][leaf] = [*TO_GIVE]
    done.to_give = [line for line in done.to_give if not line.startswith(f"{key}:")] + [f"{key}: {why}"]
    done.mapped = [line for line in done.mapped if f" -> {key}: " not in line]


class Found:
    """The keys of a configuration, and what becomes of those that are not mapped."""

    def __init__(self, keys: list[Key]):
        self.by_name: dict[str, Key] = {}
        for key in keys:  # of sections that say the same thing, the last that says something counts
            overrides = key.path.startswith(OVERRIDE) and key.value is not None
            if key.value or overrides or key.name not in self.by_name:
                self.by_name[key.name] = key
        self.left = dict(self.by_name)
        """Keys that are still to be answered."""
        self.labels: dict[str, str] = {}
        """Of an argument, the key it stands for."""
        self.no_effect: list[str] = []
        self.no_counterpart: list[str] = []
        self.silent: Counter[str] = Counter()

    def value(self, name: str, default: object = None):
        """The key's value, `default` where it has none; the key is answered."""
        key = self.left.pop(name, None) or self.by_name.get(name)
        return default if key is None or key.value is None else key.value

    def words(self, flag: str, name: str, *values: object) -> list[str]:
        """An argument, told as the key `name`."""
        if name in self.by_name:
            self.labels[flag] = self.by_name[name].path
        return [f"--{flag}", *map(_word, values)]

    def words_of(self, key: Key) -> list[str]:
        """The argument that a key is by itself; none where it is answered otherwise."""
        shown = f"{key.path} {_word(key.value)[:60]}"
        off, without = nemo_keys.NO_COUNTERPART.get(key.name, (None, ""))
        if key.name in nemo_keys.NO_COUNTERPART and key.value not in (None, off):
            if gate := self._gate(key.name):
                self.silent[f"are of {gate} alone"] += 1
            else:
                self.no_counterpart.append(f"{shown}: {without}")
        elif (
            key.name in nemo_keys.NO_COUNTERPART or key.value is None or not (key.value or key.name in nemo_keys.ZEROS)
        ):
            self.silent["say nothing (null, false, zero, or what is always so here)"] += 1
        elif gate := self._gate(key.name):
            self.silent[f"are of {gate} alone"] += 1
        elif needless := nemo_keys.SECTIONS.get(key.name) or flags.find(nemo_keys.NO_EFFECT, key.name):
            self.no_effect.append(f"{shown}: {needless}")
        else:
            values = key.value if isinstance(key.value, list) else [] if key.value is True else [key.value]
            return self.words(nemo_keys.FLAGS.get(key.name, key.name.replace("_", "-")), key.name, *values)
        return []

    def _gate(self, name: str) -> str | None:
        """The key of a feature that is off, where `name` is one of the feature's own."""
        for starts, gate, off in nemo_keys.GATES:
            key = self.by_name.get(gate)
            if name != gate and name.startswith(tuple(starts.split())) and (key is None or key.value in off):
                return gate
        return None

    def tell(self, done: Translation) -> None:
        """Has the answers name keys instead of arguments, and adds those of keys that are no arguments."""

        def renamed(line: str) -> str:
            default = re.match(r"Megatron-LM's default -> model\.(\w+): ", line)
            if default and (key := self.by_name.get(nemo_keys.MODEL.get(default[1], ""))):
                line = f"{key.path} {_word(key.value)} ->{line.partition('->')[2]}"
            line = re.sub(r"--([a-z0-9][\w-]*)", lambda match: self.labels.get(match[1], match[0]), line)
            return re.sub(r"^(\S+), (?=\1 )", "", line)

        done.no_effect += self.no_effect + [f"{count} keys {why}" for why, count in self.silent.items()]
        done.no_counterpart += self.no_counterpart
        for lines in (done.mapped, done.no_effect, done.no_counterpart, done.to_give, done.open_words):
            lines[:] = map(renamed, lines)


def _word(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def _model(found: Found) -> list[str]:
    """What a model is, where a key alone does not tell it."""
    words, heads, hidden = [], found.value("num_attention_heads"), found.value("hidden_size")
    for flag, value in (("num-attention-heads", heads), ("hidden-size", hidden)):
        words += found.words(flag, flag.replace("-", "_"), value) if value else []
    inner = found.value("ffn_hidden_size", 4 * hidden if isinstance(hidden, int) else None)
    words += found.words("ffn-hidden-size", "ffn_hidden_size", inner) if inner else []
    groups = found.value("num_query_groups", heads)
    if groups != heads:
        words += [
            *found.words("group-query-attention", "num_query_groups"),
            *found.words("num-query-groups", "num_query_groups", groups),
        ]
    words += _activation(found)
    if not found.value("add_bias_linear", True):
        words += found.words("disable-bias-linear", "add_bias_linear")
    if not found.value("share_embeddings_and_output_weights", True):
        words += found.words("untie-embeddings-and-output-weights", "share_embeddings_and_output_weights")
    if "xavier" in str(found.value("init_method")):
        words += found.words("init-method-xavier-uniform", "init_method")
    if size := found.value("vocab_size"):
        words += found.words("vocab-size", "vocab_size", size)
    name = "make_vocab_size_divisible_by"
    rows = found.value(name, 128)
    return words + found.words(name.replace("_", "-"), name, rows if found.value("should_pad_vocab", True) else 1)


def _activation(found: Found) -> list[str]:
    kind, gated = found.value("activation_func", "gelu"), found.value("gated_linear_unit", False)
    fused = found.value("bias_activation_fusion", False)
    if (kind, gated) == ("silu", True):
        return found.words("swiglu", "activation_func")
    if (kind, gated) == ("gelu", False):
        return [] if fused else found.words("no-bias-gelu-fusion", "bias_activation_fusion")
    gate = "gated " if gated else ""
    found.no_counterpart.append(f"{found.by_name['activation_func'].path} {gate}{kind}: another model")
    return []


def _data(found: Found) -> list[str]:
    """Sources: `blend` is [paths, weights or null], `blend_per_split` one for each split, `data_path` words."""
    per_split, blend, path = (found.value(name) for name in ("blend_per_split", "blend", "data_path"))
    words = []
    if isinstance(per_split, list) and any(per_split):
        for flag, one in zip(("train-data-path", "valid-data-path"), per_split, strict=False):
            words += found.words(flag, "blend_per_split", *_interleaved(one)) if one else []
    elif blend:
        words += found.words("data-path", "blend", *_interleaved(blend))
    elif path:
        words += found.words("data-path", "data_path", *(path if isinstance(path, list) else str(path).split()))
    length = found.value("seq_length", found.value("sequence_length"))
    return words + (found.words("seq-length", "seq_length", length) if length else [])


def _interleaved(blend: object) -> list[object]:
    """WEIGHT PATH ... of [paths, weights], PATH ... where there are no weights."""
    paths, weights = blend if isinstance(blend, list) and len(blend) == 2 else (blend, None)
    paths = paths if isinstance(paths, list) else [paths]
    if not isinstance(weights, list):
        return paths
    return [word for pair in zip(weights, paths, strict=False) for word in pair]


def _training(found: Found) -> list[str]:
    samples, iterations = found.value("train_samples"), found.value("train_iters")
    words = []
    if samples:
        words += found.words("train-samples", "train_samples", samples)
    elif iterations:
        words += found.words("train-iters", "train_iters", iterations)
    decay = found.by_name.get("weight_decay")
    for name in ("start_weight_decay", "end_weight_decay"):
        value = found.value(name)
        if value is not None and (decay is None or value != decay.value):
            found.no_counterpart.append(f"{found.by_name[name].path} {value}: weight decay is constant")
    if found.value("save_optim", True) is False:
        words += found.words("no-save-optim", "save_optim")
    in_fp32 = found.value("grad_reduce_in_fp32")
    if in_fp32:
        words += found.words("accumulate-allreduce-grads-in-fp32", "grad_reduce_in_fp32")
    elif in_fp32 is False:
        words += found.words("grad-reduce-in-bf16", "grad_reduce_in_fp32")
    return words

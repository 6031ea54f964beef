"""`sampling: megatron`: the samples, in the order, of megatron-core's own GPTDataset and BlendedDataset.

For runs that must follow the order of an existing one. The order depends on the number of samples in all, so no more
are built than the run has; one that has stepped over samples, and needs more, goes on with the first ones again. Where
torch.distributed is initialised, the first rank builds the index files those classes need and keeps them in `cache`,
and the others wait; elsewhere they are built in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from megatron_sky.config.schema import DataConfig, MegatronOrder, Ramp
from megatron_sky.data.loader import Batch, PlannedSource, check_ids, make_batch
from megatron_sky.data.sampling import megatron_cache
from megatron_sky.data.sampling.mixture import SessionMixture, check_weights
from megatron_sky.data.sampling.run_plan import check_sampling
from megatron_sky.data.tokens.sources import OpenSource
from megatron_sky.errors import ConfigError, DataError, Problem

UNSAID = MegatronOrder().model_dump(exclude={"cache"})
"""What counted of `data.megatron` in a run that began before it was a part of the order."""


@dataclass(frozen=True)
class _Source:
    name: str
    num_tokens: int


class MegatronPlan:
    """What the trainer asks of a plan, answered from megatron-core's index; sources are in the recipe's order."""

    def __init__(self, dataset, sources: Sequence[PlannedSource], fingerprint: dict):
        self._size = len(dataset)  # at least the run's samples
        self._order = getattr(dataset, "dataset_index", None)
        self._fingerprint = fingerprint
        self.sources = tuple(sources)

    def index_of(self, number: int) -> int:
        """The place in megatron-core's index of sample `number`."""
        return number % self._size

    def source_of(self, number: int) -> int:
        """The source of a sample."""
        return 0 if self._order is None else int(self._order[self.index_of(number)])

    def consumed(self, sample_count: int) -> list[int]:
        """Sequences each source has given once the run has used `sample_count` samples."""
        if self._order is None:
            return [sample_count]
        rounds, rest = divmod(sample_count, self._size)
        counts = np.bincount(self._order[:rest], minlength=len(self.sources))
        if rounds:
            counts += rounds * np.bincount(self._order, minlength=len(self.sources))
        return counts.tolist()

    def epochs(self, sample_count: int) -> list[float]:
        """How often each source has been gone through after `sample_count` samples."""
        length = self._fingerprint["seq_length"]
        given = zip(self.consumed(sample_count), self.sources, strict=True)
        return [count * length / max(1, source.num_tokens - 1) for count, source in given]

    def problems(self) -> list[Problem]:
        """megatron-core repeats sources without a limit, so there is none to break."""
        return []

    def fingerprint(self) -> dict:
        """All that decides the order, as plain values."""
        return self._fingerprint


class MegatronTrainData:
    """The training mixture, read through megatron-core; the same surface as `TrainData`.

    Args:
        config: the recipe's data section; `config.validate` has checked that this order knows what it asks for.
        sources: its training sources, opened, in its order.
        total_samples: of the whole run; with another number the order is another.
        cache: folder of the index files.

    Raises:
        ConfigError: no source, or no weight above 0.
        DataError: a source of floating-point numbers, which megatron-core reads no samples of.
    """

    def __init__(
        self,
        config: DataConfig,
        sources: Sequence[OpenSource],
        *,
        seq_length: int,
        vocab_size: int,
        total_samples: int,
        cache: str | Path,
    ):
        check_weights(config, [SessionMixture(0, total_samples)])
        for tokens in (source.tokens for source in sources):
            if tokens.dtype.kind == "f":
                fix = "tokenize the text again, or train with data.sampling=plan, which takes them for ids"
                raise DataError(
                    f"{tokens.prefix}.idx: says {tokens.dtype}, megatron-core reads integers alone\n  fix: {fix}"
                )
        self.sources, self.seq_length, self.vocab_size = sources, seq_length, vocab_size
        self._dataset = _build(config, seq_length, vocab_size, total_samples, str(cache))
        self.plan = MegatronPlan(
            self._dataset,
            [
                _Source(name=source.name, num_tokens=num_tokens)
                for source, num_tokens in zip(config.train, _tokens_used(self._dataset), strict=True)
            ],
            {
                "sampling": "megatron",
                "seed": config.seed,
                "seq_length": seq_length,
                "total_samples": total_samples,
                "sources": [
                    {"name": source.name, "weight": source.weight, "num_tokens": opened.tokens.num_tokens}
                    for source, opened in zip(config.train, sources, strict=True)
                ],
                **config.megatron.model_dump(exclude={"cache"}),
            },
        )

    def continue_from(self, saved: Mapping, used_samples: int) -> str:
        """Raises ConfigError unless nothing has changed: this order can't change in mid-run. Returns an empty text."""
        check_sampling(saved, "megatron")
        if problems := _changes(saved, self.plan.fingerprint()):
            raise ConfigError(problems)
        return ""

    def read(self, sample_numbers: Sequence[int]) -> Batch:
        """The batch of these samples of the run, in this order."""
        rows = []
        for number in sample_numbers:
            sample = self._dataset[self.plan.index_of(number)]
            rows.append(np.append(sample["tokens"].numpy(), sample["labels"].numpy()[-1]))
            check_ids(rows[-1], self.sources[self.plan.source_of(number)].tokens, 0, self.vocab_size)
        return make_batch(rows)


def _changes(before: Mapping, now: Mapping) -> list[Problem]:
    """What of a run's order is not as it began. Of a run that Megatron-LM began, its checkpoint does not say all."""
    before = {**now, **(UNSAID if "sources" in before else {}), **before}
    anew = "start a new run from the weights with checkpoint.init_from"
    rules = {
        **{(f"data.megatron.{key}", key): f"was {before[key]} when the run began" for key in UNSAID},
        ("data.seed", "seed"): f"was {before['seed']} when the run began",
        ("model.seq_length", "seq_length"): f"was {before['seq_length']} when the run began",
        ("train.tokens", "total_samples"): f"makes {now['total_samples']:,} samples with these batch sizes, "
        f"{before['total_samples']:,} when the run began",
        ("data.train", "sources"): "has other sources, weights or token files than when the run began: "
        + ", ".join(f"{one['name']} {one['weight']:g} ({one['num_tokens']:,} tokens)" for one in before["sources"]),
    }
    return [
        Problem(where, f"{rule}; megatron-core's order would be another", f"restore it, or {anew}")
        for (where, name), rule in rules.items()
        if before[name] != now[name]
    ]


def _build(config: DataConfig, seq_length: int, vocab_size: int, total_samples: int, cache: str):
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from torch import distributed

    weights = [source.weight for source in config.train if not isinstance(source.weight, Ramp)]
    assert len(weights) == len(config.train), "a ramp is refused with the recipe"
    blend = ([source.path for source in config.train], [float(weight) for weight in weights])
    order = config.megatron
    given = order.weights == "given" and len(config.train) > 1
    settings = GPTDatasetConfig(
        random_seed=config.seed,
        sequence_length=seq_length,
        blend=(blend[0], blend[1] if given else None),
        split=order.split or "1,0,0",
        mid_level_dataset_surplus=order.surplus,
        path_to_cache=cache if distributed.is_initialized() else None,
        tokenizer=SimpleNamespace(vocab_size=vocab_size, eod=vocab_size - 1, pad=-1, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    assert settings.split_matrix is not None
    settings.split_matrix = [settings.split_matrix[0], None, None]  # the other parts are not read
    sizes = [order.num_samples or total_samples, 0, 0]
    kind = GPTDataset if order.cache is None else megatron_cache.dataset_class(order.cache)
    return BlendedMegatronDatasetBuilder(kind, sizes, lambda: True, settings).build()[0]


def _tokens_used(dataset) -> list[int]:
    """Tokens of the documents that each source gives, those of `split` alone."""
    levels = getattr(dataset, "datasets", [dataset])
    return [int(np.sum(level.dataset.sequence_lengths[level.indices])) for level in levels]

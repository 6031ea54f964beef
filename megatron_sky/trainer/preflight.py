"""Everything that can be known before a run starts, looked at together, so that all that is wrong is told at once.

The recipe's rules, its references and tokenizers, every data file, the run folder and the checkpoint to start from. No
process group and no model is needed, so that ranks, the process that starts them, a dry run and a planner all ask the
same. What a check found or opened is kept for the run: nothing is read or computed a second time.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from megatron_sky.config import Config
from megatron_sky.config.schema import SourceConfig, ValidationConfig, ValidationSet
from megatron_sky.config.validate import find_notes, find_problems
from megatron_sky.data.loader import TrainData
from megatron_sky.data.sampling.mixture import check_weights
from megatron_sky.data.tokens.meta import shared_source
from megatron_sky.data.tokens.sources import OpenSource, open_source
from megatron_sky.errors import ConfigError, DataError, Problem, SkyError, told_once
from megatron_sky.monitor.metrics import check_wandb
from megatron_sky.tokenizer import files as tokenizer_files
from megatron_sky.tokenizer.kinds import Tokenizer, load_tokenizer
from megatron_sky.trainer import run_folder
from megatron_sky.trainer.resume import check_start
from megatron_sky.trainer.sessions import Sessions, sessions_of
from megatron_sky.trainer.sessions import find_notes as find_session_notes
from megatron_sky.trainer.validation import read_references

T = TypeVar("T")
_FIX = re.compile(r"\n +fix: ")


class PreflightError(SkyError):
    """Faults of several kinds, in `errors`. Its exit code is the first's in the order recipe, data, checkpoint, run."""

    def __init__(self, errors: Sequence[SkyError]):
        self.errors = tuple(sorted(errors, key=lambda error: error.exit_code))
        self.exit_code = self.errors[0].exit_code
        faults = [text for error in self.errors for text in _texts(error)]
        groups = [group.replace("\n", "\n     ") for group in group_by_fix(faults)]
        lines = [f"  {number}. {group}" for number, group in enumerate(groups, 1)]
        super().__init__("\n".join([f"the run can't start, for {len(faults)} reasons:", *lines]))


@dataclass
class Preflight:
    """What was found. Where there are `errors`, what follows from them is missing (None, or shorter).

    Attributes:
        sources, validation: the training sources in the recipe's order, and the validation sets by name, opened.
        data: the training mixture by plan; None where it can't be known.
        references: other models' losses on the sets.
        notes: what the author of the recipe may not have meant.
        tokenizer: the files of the run's tokenizer by their names in a checkpoint, held for all that it will save.
        damaged: checkpoints that would be passed over; a run's start looks closer and says so itself.
    """

    errors: list[SkyError] = field(default_factory=list)
    sessions: Sessions | None = None
    sources: list[OpenSource] = field(default_factory=list)
    validation: dict[str, OpenSource] = field(default_factory=dict)
    data: TrainData | None = None
    references: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tokenizer: dict[str, bytes] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[..., T], *args, **kwargs) -> T | None:
        """What `work` gives; None, and its SkyError among `errors`, where it fails."""
        try:
            return work(*args, **kwargs)
        except SkyError as error:
            self.errors.append(error)
            return None

    def raise_errors(self) -> "Preflight":
        """This, if nothing is wrong. Raises one error with everything that is."""
        if self.errors:
            raise combined(self.errors)
        return self


def preflight(
    config: Config,
    world_size: int,
    *,
    leads: bool = True,
    machine_problems: Callable[[Config], list[Problem]] = lambda config: [],
) -> Preflight:
    """Looks at everything and raises nothing: `raise_errors` does.

    `leads`: this process speaks for the job, and looks whether another holds the run folder, and at the checkpoint to
    start from; a rank other than 0 does not. `machine_problems`: what the machines that will run can't do.
    """
    seen = Preflight()
    problems = told_once([*find_problems(config, world_size), *(seen.attempt(machine_problems, config) or [])])
    if problems:
        seen.errors.append(ConfigError(problems))
    # Without a budget, or with sizes that a ramp of the batch can't take, what is said of sessions would be a riddle.
    if not any(problem.where.startswith(("train.tokens", "train.batch_rampup.")) for problem in problems):
        seen.sessions = seen.attempt(sessions_of, config)
    seen.references = seen.attempt(read_references, config.validation) or []
    tokenizer = seen.attempt(load_tokenizer, config.tokenizer.path) if config.tokenizer.path else None
    if tokenizer is not None and config.tokenizer.path is not None:
        seen.tokenizer = seen.attempt(tokenizer_files.read, Path(config.tokenizer.path)) or {}
    seen.attempt(_check_reference_tokenizer, config.validation, config.tokenizer.path)
    _open_data(seen, config, tokenizer)
    run_dir = Path(config.train.run_dir)
    seen.attempt(run_folder.check_free if leads else run_folder.check, run_dir)
    if leads:
        seen.attempt(check_wandb, config.monitor.wandb)
        seen.attempt(
            check_start,
            config.checkpoint,
            model=config.model,
            run_dir=run_dir,
            warn=seen.damaged.append,
            finetune=config.finetune,
        )
    if not problems and seen.sessions is not None:
        seen.notes = [*find_notes(config, world_size), *find_session_notes(seen.sessions, config)]
    if seen.data is not None:
        seen.notes += validation_overlap(config.data.train, seen.sources, seen.validation)
    return seen


def _check_reference_tokenizer(validation: ValidationConfig, own: str | None) -> None:
    """Raises the SkyError of what would keep losses from being normalised."""
    path = validation.reference_tokenizer
    if path is None:
        return
    load_tokenizer(path)
    if own is None:
        fix = "set tokenizer.path, or leave validation.reference_tokenizer out"
        rule = "needs the run's own tokenizer to read its sets"
        raise ConfigError(Problem("validation.reference_tokenizer", rule, fix, path))


def _open_data(seen: Preflight, config: Config, tokenizer: Tokenizer | None) -> None:
    """Opens every source and set, and reckons with the mixture if all of them are there."""

    def opened(source: SourceConfig | ValidationSet) -> OpenSource | None:
        return seen.attempt(
            open_source,
            source.path,
            vocab_size=config.model.vocab_size,
            tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
            eod_id=tokenizer.eod_id if tokenizer else None,
        )

    seen.sources = [source for given in config.data.train if (source := opened(given)) is not None]
    seen.validation = {given.name: source for given in config.validation.sets if (source := opened(given)) is not None}
    if seen.sessions is None:
        return
    mixtures = [session.mixture for session in seen.sessions.every]
    if len(seen.sources) < len(config.data.train):
        seen.attempt(check_weights, config.data, mixtures)
        return
    settings = config.data
    if settings.sampling == "megatron":  # whose order repeats sources without a limit
        settings = settings.model_copy(update={"max_epochs": math.inf})
    seen.data = seen.attempt(
        TrainData,
        settings,
        seen.sources,
        seq_length=config.model.seq_length,
        vocab_size=config.model.vocab_size,
        sessions=mixtures,
        pairs=config.learns_preference,
    )


def validation_overlap(
    train: Sequence[SourceConfig], sources: Sequence[OpenSource], validation: dict[str, OpenSource]
) -> list[str]:
    """A note for each validation set that was made from a text file that the run also trains on."""
    return [
        f"validation.sets[{name}]: {path} is also in the training source {config.name}: its loss is no test"
        for name, held_out in validation.items()
        for config, source in zip(train, sources, strict=True)
        if (path := shared_source(held_out.meta, source.meta)) is not None
    ]


def combined(errors: Sequence[SkyError]) -> SkyError:
    """One error for several: of their own kind where they share one."""
    if len(errors) == 1:
        return errors[0]
    of_recipe = [error for error in errors if isinstance(error, ConfigError)]
    if len(of_recipe) == len(errors):
        return ConfigError(told_once([problem for error in of_recipe for problem in error.problems]))
    if all(isinstance(error, DataError) for error in errors):
        return DataError("\n".join(group_by_fix([str(error) for error in errors])))
    return PreflightError(errors)


def group_by_fix(texts: Sequence[str]) -> list[str]:
    """Several errors' texts, those of one fix as one text that ends with it."""
    by_fix: dict[str, list[str]] = {}
    for text in texts:
        rule, *fix = _FIX.split(text, maxsplit=1)
        by_fix.setdefault("".join(fix), []).append(rule)
    return ["\n".join(rules) + (f"\n  fix: {fix}" if fix else "") for fix, rules in by_fix.items()]


def _texts(error: SkyError) -> list[str]:
    return [str(problem) for problem in error.problems] if isinstance(error, ConfigError) else [str(error)]

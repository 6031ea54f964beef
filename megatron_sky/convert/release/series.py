"""The series of intermediate checkpoints of a run, each as a Hugging Face folder with a model card.

For every token mark that the run has passed, the first checkpoint at or after it is exported to `OUT/NAME-MARK`
(`skywork-13b-1.5T`). `OUT/series.json` lists all that stand there. Each export is proven and resumable as any
conversion is; a mark that is exported and whole is left as it is, whatever has become of its checkpoint since, so the
command can be run again whenever the run has passed another mark.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.checkpoint import description, store
from megatron_sky.config.units import SCALES, format_count, parse_count
from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.output import DEFAULT_FILE_SIZE, finished_record, whole_conversion
from megatron_sky.convert.release.model_card import Facts, build_card
from megatron_sky.convert.sources import open_source
from megatron_sky.data.sampling.run_plan import tokens_given
from megatron_sky.errors import CheckpointError, MissingDependency
from megatron_sky.files import read_json, real_path, write_json
from megatron_sky.log import get_logger
from megatron_sky.monitor.metrics import METRICS_FILE, read_metrics

log = get_logger(__name__)

SERIES = "series.json"
_LABEL = re.compile(r"\d+(\.\d+)?[kMBT]?")  # of `mark_label`
_OVERSHOOT = 0.01  # a checkpoint further beyond a mark, as a fraction of it, does not stand for it


@dataclass(frozen=True)
class Mark:
    """A token mark and the checkpoint that stands for it."""

    tokens: int
    folder: Path
    consumed_tokens: int

    @property
    def label(self) -> str:
        return mark_label(self.tokens)


def mark_label(tokens: int) -> str:
    """1_500_000_000_000 -> `1.5T`, exact."""
    for suffix, scale in SCALES:
        if tokens >= scale and tokens * 1000 % scale == 0:
            return f"{tokens / scale:.3f}".rstrip("0").rstrip(".") + suffix
    return str(tokens)


def release_run(
    run_dir: Path,
    out: Path | None = None,
    *,
    marks: Sequence[int] | None = None,
    architecture: str | None = None,
    name: str | None = None,
    push: str | None = None,
    file_size: int = DEFAULT_FILE_SIZE,
) -> list[Path]:
    """Exports the run's checkpoints at `marks` (consumed tokens; None: the recipe's `checkpoint.release_marks`).

    Returns the folders, earliest mark first. `push` names a Hugging Face repository to upload to, a revision a mark.
    Raises CheckpointError when there is no mark, or none that a checkpoint stands for.
    """
    name = name or (_name_before(run_dir / "release") if out is None else None) or real_path(run_dir).name
    out = out or run_dir / "release"
    checkpoints = _readable_checkpoints(run_dir)
    due = _due_marks(run_dir, checkpoints, marks)
    folders = {mark: out / f"{name}-{mark_label(mark)}" for mark in due}
    done = {mark: folder for mark, folder in folders.items() if _is_exported(folder, architecture)}
    reached = _checkpoints_for(checkpoints, [mark for mark in due if mark not in done])
    if not done and not reached:
        raise CheckpointError(
            f"{run_dir}: no checkpoint stands for any of {', '.join(map(mark_label, due))}; it has checkpoints at "
            f"{', '.join(f'{tokens:,}' for tokens, _ in checkpoints)} tokens"
        )
    for mark in reached:
        _export(mark, run_dir, folders[mark.tokens], name, architecture, file_size)
    exported = [mark for mark in due if mark in done or mark in {mark_reached.tokens for mark_reached in reached}]
    _write_series(out, name)
    if push is not None:
        _push(push, {mark: folders[mark] for mark in exported})
    return [folders[mark] for mark in exported]


def _readable_checkpoints(run_dir: Path) -> list[tuple[int, description.CheckpointDescription]]:
    """(consumed tokens, what it says of itself) of every checkpoint of the run that has all its files, oldest first.

    The others are told and passed over. Raises CheckpointError where there is none.
    """
    listed = store.list_checkpoints(run_dir)
    if not listed:
        raise CheckpointError(f"{run_dir}: has no checkpoint\n  fix: give a run's folder")
    readable = []
    for _, folder in listed:
        try:
            store.check_sizes(folder)
            readable.append((store.consumed_tokens(folder), description.read_description(folder)))
        except CheckpointError as error:
            log.warning("passed over: %s", error)
    if not readable:
        raise CheckpointError(f"{run_dir}: none of its {len(listed)} checkpoints can be read")
    return readable


def _due_marks(
    run_dir: Path, checkpoints: list[tuple[int, description.CheckpointDescription]], marks: Sequence[int] | None
) -> list[int]:
    recipe = checkpoints[-1][1].config.checkpoint
    due = sorted(set(recipe.release_marks if marks is None else marks))
    if not due:
        raise CheckpointError(
            f"{run_dir}: its recipe sets no checkpoint.release_marks\n  fix: set them there, or give --marks 500B,1T"
        )
    return due


def _checkpoints_for(checkpoints: list[tuple[int, description.CheckpointDescription]], marks: list[int]) -> list[Mark]:
    """For each mark that the run has passed the first checkpoint at or after it, if it is near enough; tells if not."""
    config = checkpoints[-1][1].config
    step_tokens = config.train.global_batch_size * config.model.seq_length
    reached = []
    for mark in marks:
        first = next(((tokens, saved) for tokens, saved in checkpoints if tokens >= mark), None)
        if first is None:
            log.info("%s: not reached yet, the run is at %s tokens", mark_label(mark), f"{checkpoints[-1][0]:,}")
            continue
        tokens, saved = first
        if tokens - mark >= max(step_tokens, _OVERSHOOT * mark):
            log.warning("%s: skipped: the next checkpoint is at %s tokens", mark_label(mark), f"{tokens:,}")
        else:
            reached.append(Mark(mark, saved.folder, tokens))
    return reached


def _is_exported(folder: Path, architecture: str | None) -> bool:
    """Whether a mark's folder is there and whole, from whichever checkpoint it was made, into files of whatever size.

    Raises CheckpointError where a file of it was changed, or it was made for another architecture.
    """
    record = finished_record(folder)
    if record is None:
        return False
    made_for = record["conversion"].get("to")
    if architecture is not None and made_for != architecture:
        raise CheckpointError(
            f"{folder}: exists already, as {made_for}, not {architecture}\n  fix: remove it, or give another --out"
        )
    whole_conversion(folder, record)
    log.info("%s: is exported and whole already", folder)
    return True


def _export(mark: Mark, run_dir: Path, out: Path, name: str, architecture: str | None, file_size: int) -> None:
    source = open_source(mark.folder)
    facts = _facts(mark, run_dir, name)
    done = write_hf(
        source,
        out,
        architecture=architecture,
        file_size=file_size,
        card=lambda folder: build_card(
            facts, store.hash_files(folder, sorted(p.name for p in folder.glob("*.safetensors")))
        ),
    )
    log.info("%s: %s", mark.label, done.folder)


def _facts(mark: Mark, run_dir: Path, name: str) -> Facts:
    saved = description.read_description(mark.folder)
    return Facts(
        name=f"{name}-{mark.label}",
        step=saved.progress["step"],
        consumed_tokens=saved.progress["consumed_tokens"],
        layout=saved.layout,
        config=saved.config,
        tokens_per_source=tokens_given(saved.data, saved.progress["consumed_samples"]),
        validation=_validation(run_dir, saved.progress["step"]),
    )


def _validation(run_dir: Path, step: int) -> dict[str, tuple[float, int]]:
    """Set -> (its last loss at or before `step`, the step it was taken at)."""
    if not (run_dir / METRICS_FILE).is_file():
        return {}
    records = [record for record in read_metrics(run_dir).validation if record.step <= step]
    return {record.set: (record.lm_loss, record.step) for record in sorted(records, key=lambda record: record.step)}


def _name_before(out: Path) -> str | None:
    """The name that the run's own series bears, also where the run's folder was renamed since."""
    try:
        return read_json(out / SERIES)["name"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{out / SERIES}: can't be read: {error}\n  fix: remove it; it is made anew") from error


def _write_series(out: Path, name: str) -> None:
    """`series.json`: all exported marks of the model that stand in `out`, whichever call made them."""
    content = {
        "name": name,
        "checkpoints": [entry for _, entry in sorted(_exported_marks(out, name), key=lambda item: item[0])],
    }
    write_json(out / SERIES, content, indent=2)


def _exported_marks(out: Path, name: str) -> Iterator[tuple[int, dict]]:
    for folder in out.iterdir():
        label = folder.name.removeprefix(f"{name}-")
        if label == folder.name or not _LABEL.fullmatch(label) or (record := finished_record(folder)) is None:
            continue
        progress = record.get("progress") or {}
        step = progress.get("step")
        yield (
            parse_count(label),
            {
                "tokens": label,
                "consumed_tokens": progress.get("consumed_tokens"),
                "step": None if step is None else store.folder_of(out, step).name,
                "folder": folder.name,
            },
        )


def _push(repository: str, folders: dict[int, Path]) -> None:
    """Uploads each folder as the revision of its mark; where it can't, says why: the folders are ready all the same."""
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HFValidationError, HTTPError  # the second of whichever library it uses
    except ImportError:
        raise MissingDependency("huggingface_hub", "release --push", "pip install 'megatron-sky[hf]'") from None
    if get_token() is None:
        log.warning(
            "not uploaded: there is no Hugging Face token (`hf auth login`, or HF_TOKEN); the folders are ready"
        )
        return
    api = HfApi()
    for mark, folder in folders.items():
        label = mark_label(mark)
        revision = f"{format_count(mark)}-tokens" if label.isdigit() else f"{label}-tokens"
        try:
            api.create_repo(repository, exist_ok=True)
            api.create_branch(repository, branch=revision, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=str(folder), revision=revision)
        except (OSError, HTTPError, HFValidationError) as error:
            log.warning("%s: not uploaded: %s; the folder is ready, run the command again", label, error)
            return
        log.info("%s: uploaded to %s, revision %s", label, repository, revision)

"""The series of intermediate checkpoints of a run, each as a Hugging Face folder with a model card.

For every token mark that the run has passed, the first checkpoint at or after it is exported to `OUT/NAME-MARK`
(`skywork-13b-1.5T`). `OUT/series.json` lists them. Each export is proven and resumable as any conversion is; a mark
that is exported already is left as it is, so the command can be run again whenever the run has passed another mark.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.checkpoint import state as native
from megatron_sky.checkpoint import store
from megatron_sky.config.units import format_count
from megatron_sky.convert.hf_folder import write_hf
from megatron_sky.convert.model_card import Facts, build_card
from megatron_sky.convert.output import DEFAULT_FILE_SIZE
from megatron_sky.convert.sources import open_source
from megatron_sky.data.plan import tokens_given
from megatron_sky.errors import CheckpointError, MissingDependency
from megatron_sky.log import get_logger
from megatron_sky.monitor.metrics import METRICS_FILE, read_metrics

log = get_logger(__name__)

SERIES = "series.json"
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
    for suffix, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
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
    out = out or run_dir / "release"
    name = name or run_dir.resolve().name
    found = find_marks(run_dir, marks)
    exported = [
        (mark, _export(mark, run_dir, out / f"{name}-{mark.label}", name, architecture, file_size)) for mark in found
    ]
    _write_series(out, name, exported)
    if push is not None:
        _push(push, exported)
    return [folder for _, folder in exported]


def find_marks(run_dir: Path, marks: Sequence[int] | None) -> list[Mark]:
    """The marks that the run has passed, with their checkpoints. Tells of those that no checkpoint stands for."""
    checkpoints = [(_consumed_tokens(folder), folder) for _, folder in store.list_checkpoints(run_dir)]
    if not checkpoints:
        raise CheckpointError(f"{run_dir}: has no checkpoint\n  mend: give a run's folder")
    saved = native.read_saved(checkpoints[-1][1])
    wanted = sorted(set(saved.config.checkpoint.release_marks if marks is None else marks))
    if not wanted:
        raise CheckpointError(
            f"{run_dir}: its recipe sets no checkpoint.release_marks\n  mend: set them there, or give --marks 500B,1T"
        )
    step_tokens = saved.config.train.global_batch_size * saved.config.model.seq_length
    found = []
    for mark in wanted:
        after = next(((tokens, folder) for tokens, folder in checkpoints if tokens >= mark), None)
        if after is None:
            log.info("%s: not reached yet, the run is at %s tokens", mark_label(mark), f"{checkpoints[-1][0]:,}")
        elif after[0] - mark >= max(step_tokens, _OVERSHOOT * mark):
            log.warning("%s: skipped: the next checkpoint is at %s tokens", mark_label(mark), f"{after[0]:,}")
        else:
            found.append(Mark(mark, after[1], after[0]))
    if not found:
        raise CheckpointError(
            f"{run_dir}: no checkpoint stands for any of {', '.join(map(mark_label, wanted))}; it has checkpoints at "
            f"{', '.join(f'{tokens:,}' for tokens, _ in checkpoints)} tokens"
        )
    return found


def _consumed_tokens(folder: Path) -> int:
    return native.read_saved(folder).progress["consumed_tokens"]


def _export(mark: Mark, run_dir: Path, out: Path, name: str, architecture: str | None, file_size: int) -> Path:
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
    return done.folder


def _facts(mark: Mark, run_dir: Path, name: str) -> Facts:
    saved = native.read_saved(mark.folder)
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


def _write_series(out: Path, name: str, exported: list[tuple[Mark, Path]]) -> None:
    content = {
        "name": name,
        "checkpoints": [
            {
                "tokens": mark.label,
                "consumed_tokens": mark.consumed_tokens,
                "step": mark.folder.name,
                "folder": path.name,
            }
            for mark, path in exported
        ],
    }
    temporary = out / (SERIES + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(out / SERIES)


def _push(repository: str, exported: list[tuple[Mark, Path]]) -> None:
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
    for mark, folder in exported:
        revision = f"{format_count(mark.tokens)}-tokens" if mark.label.isdigit() else f"{mark.label}-tokens"
        try:
            api.create_repo(repository, exist_ok=True)
            api.create_branch(repository, branch=revision, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=str(folder), revision=revision)
        except (OSError, HTTPError, HFValidationError) as error:
            log.warning("%s: not uploaded: %s; the folder is ready, run the command again", mark.label, error)
            return
        log.info("%s: uploaded to %s, revision %s", mark.label, repository, revision)

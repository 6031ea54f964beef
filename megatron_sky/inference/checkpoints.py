"""A checkpoint of any kind as a model that gives text: a native checkpoint, a run's latest, or a Hugging Face folder.

It is described first (`open_checkpoint`): what it is, how long its texts may be, what its tokenizer does. `load` then
reads the weights, by megatron-core or by transformers.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from megatron_sky.checkpoint import description, store
from megatron_sky.errors import CheckpointError
from megatron_sky.files import real_path
from megatron_sky.inference.hf_folder import HF_CONFIG, check_name, hf_settings, is_skywork, said
from megatron_sky.inference.model import Model
from megatron_sky.log import get_logger
from megatron_sky.tokenizer import files as tokenizer_files
from megatron_sky.tokenizer.coder import TextCoder, file_coder
from megatron_sky.tokenizer.kinds import find_in_hugging_face

if TYPE_CHECKING:
    from megatron_sky.distributed.context import ParallelContext

log = get_logger(__name__)

NATIVE, HF = "native", "hugging_face"
Loaded = TypeVar("Loaded")


class Deleted(CheckpointError):
    """A checkpoint that went away while it was read."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. `context`: the tokens it was made for. `step`, `consumed_tokens`: where a run tells them.

    `run`: the run folder whose latest it was when it was opened; None where it was given itself. `has_adapters`: it
    holds adapters alone, of the model that lies in `base` where it was moved.
    """

    name: str
    path: Path
    kind: str
    context: int
    step: int | None
    consumed_tokens: int | None
    run: Path | None = None
    has_adapters: bool = False
    base: Path | None = None

    @cached_property
    def coder(self) -> TextCoder:
        """Its tokenizer. Raises CheckpointError where it has none."""
        return _hf_coder(self.path) if self.kind == HF else _native_coder(self)

    def load(self, context: "ParallelContext") -> Model:
        """The model with its weights, on this rank of `context`; by `load_latest`, as its files may go meanwhile."""
        if self.kind == HF:
            from megatron_sky.inference.hf_model import HfModel, load_folder

            return HfModel(load_folder(self.path, context.device), context)
        from megatron_sky.inference.native_model import NativeModel

        return NativeModel(self.path, context)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, its files are read: whatever fails because they have gone meanwhile is Deleted."""
        try:
            yield
        except BaseException as error:  # torch's reader has errors of its own for a file that is gone
            if isinstance(error, KeyboardInterrupt | SystemExit) or self.path.exists():
                raise
            raise _deleted(self.path) from error


def open_checkpoint(folder: Path, name: str | None = None, *, base: Path | None = None) -> Checkpoint:
    """The checkpoint in `folder`, or the latest of the run that it is; `name` None: its folder's.

    `base`: where the model beneath adapters lies now. Raises CheckpointError where it is neither a checkpoint, nor a
    run with one, nor a Hugging Face folder, or has no use for `base`.
    """
    opened = _opened(folder, name)
    if base is None:
        return opened
    if not opened.has_adapters:
        raise CheckpointError(f"{opened.path}: holds no adapters, which --base is for\n  fix: leave --base out")
    return replace(opened, base=base)


def _opened(folder: Path, name: str | None) -> Checkpoint:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is no folder\n  fix: give a checkpoint, a run or a Hugging Face folder")
    if (folder / HF_CONFIG).is_file() and not (folder / store.MANIFEST).is_file():
        return Checkpoint(name or real_path(folder).name, folder, HF, _hf_context(folder), None, None)
    is_run = not store.is_checkpoint(folder)
    while True:
        resolved = store.resolve(folder, log.warning)
        try:
            return _described(resolved, name, folder if is_run else None)
        except CheckpointError:
            if resolved.exists():
                raise
            if not is_run:
                raise _deleted(resolved) from None
        log.warning("%s was deleted while it was read; taking the newest that is there now", resolved)


def _described(folder: Path, name: str | None, run: Path | None) -> Checkpoint:
    saved = description.read_description(folder)
    progress, context = saved.progress, saved.config.model.seq_length
    step, tokens = progress.get("step"), progress.get("consumed_tokens")
    name, has_adapters = name or _native_name(folder), saved.adapter is not None
    return Checkpoint(name, folder, NATIVE, context, step, tokens, run, has_adapters)


def _deleted(folder: Path) -> Deleted:
    fix = "give a run folder for its latest, or keep it (checkpoint.keep_last, checkpoint.release_marks)"
    return Deleted(f"{folder}: was deleted while it was read, as a training's retention does\n  fix: {fix}")


def load_latest(
    checkpoint: Checkpoint, context: "ParallelContext", read: Callable[[Checkpoint], Loaded]
) -> tuple[Checkpoint, Loaded]:
    """The model that `read` loads, and what it is: a run's newer checkpoint where `checkpoint` was deleted meanwhile.

    Of several ranks none can choose another alone: Deleted is raised then, and where they have opened different ones.
    """
    if context.world_size > 1 and len(set(context.gather_objects(str(checkpoint.path)))) > 1:
        fix = "give the folder of one checkpoint"
        raise Deleted(f"{checkpoint.run}: its latest checkpoint changed while the ranks opened it\n  fix: {fix}")
    return read_latest(checkpoint, read, alone=context.world_size == 1)


def read_latest(
    checkpoint: Checkpoint, read: Callable[[Checkpoint], Loaded], *, alone: bool = True
) -> tuple[Checkpoint, Loaded]:
    """What `read` makes of the checkpoint, or of a newer one where this process is `alone` (see `load_latest`)."""
    while True:
        try:
            with checkpoint.kept():
                return checkpoint, read(checkpoint)
        except Deleted:
            if checkpoint.run is None or not alone:
                raise
        newer = open_checkpoint(checkpoint.run, base=checkpoint.base)
        if checkpoint.name != _native_name(checkpoint.path):
            newer = replace(newer, name=checkpoint.name)
        log.warning("%s was deleted while it was read; taking %s", checkpoint.path, newer.path.name)
        checkpoint = newer


def _native_name(folder: Path) -> str:
    """`run/step_0000240` for a checkpoint in a run folder, else the folder's own name."""
    folder = real_path(folder)
    return f"{folder.parents[1].name}/{folder.name}" if folder.parent.name == "checkpoints" else folder.name


def _native_coder(checkpoint: Checkpoint) -> TextCoder:
    """Training here puts the end-of-document token before a document, whatever the tokenizer's settings are.

    Of a checkpoint that was only converted, the settings tell what its training did.
    """
    path = description.tokenizer_in(checkpoint.path)
    return file_coder(path, adds_bos=not checkpoint.consumed_tokens and tokenizer_files.adds_begin(path))


def _hf_context(folder: Path) -> int:
    settings = hf_settings(folder)
    names = ("max_position_embeddings", "n_positions", "seq_length")
    context = next((settings[name] for name in names if type(settings.get(name)) is int), None)
    if context is None:
        raise CheckpointError(f"{folder / HF_CONFIG}: tells no context length: none of {', '.join(names)}")
    return context


def _hf_coder(folder: Path) -> TextCoder:
    """The tokenizer as those who load the folder get it; its file alone where transformers does not know it."""
    tokenizer_file = find_in_hugging_face(folder)
    known = (folder / tokenizer_files.SETTINGS).is_file() and not is_skywork(hf_settings(folder))
    if tokenizer_file is not None and not known:
        return file_coder(tokenizer_file, adds_bos=tokenizer_files.adds_begin(tokenizer_file))
    import transformers

    check_name(folder)
    try:
        loaded: Any = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # whatever a file of another shape causes within it
        raise CheckpointError(f"{folder}: its tokenizer can't be loaded: {said(error)}") from error
    beside = file_coder(tokenizer_file).sha256 if tokenizer_file is not None else ""
    return TextCoder(
        vocab_size=1 + max(loaded.get_vocab().values()),
        name=tokenizer_file.name if tokenizer_file is not None else type(loaded).__name__,
        sha256=beside,
        encode=lambda text: loaded(text, add_special_tokens=False, verbose=False)["input_ids"],
        decode=lambda ids: loaded.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
        bos_id=loaded.bos_token_id,
        eod_id=loaded.eos_token_id,
        adds_bos=loaded.bos_token_id is not None and loaded("a")["input_ids"][:1] == [loaded.bos_token_id],
        special={"bos_token": loaded.bos_token, "eos_token": loaded.eos_token},
    )

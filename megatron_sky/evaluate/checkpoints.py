"""The models to evaluate, described before any weight is read: a native checkpoint, a run, or a Hugging Face folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from megatron_sky.checkpoint import state, store
from megatron_sky.errors import CheckpointError, ConfigError, MissingDependency, Problem
from megatron_sky.evaluate.results import file_name
from megatron_sky.log import get_logger
from megatron_sky.tokenizer import files as tokenizer_files
from megatron_sky.tokenizer.kinds import find_in_hugging_face, load_tokenizer

log = get_logger(__name__)

NATIVE, HF = "native", "hugging_face"
BEGINS = ("auto", "bos", "eod", "none")
_HF_CONFIG = "config.json"
_SKYWORK = "SkyworkForCausalLM"  # LLaMA under another name, in folders that bring code of their own


@dataclass(frozen=True)
class TextCoder:
    """What a model's tokenizer does here.

    Attributes:
        encode: text -> ids, nothing added.
        decode: ids -> text.
        adds_bos: whether its users get the begin token without asking.
        sha256: of the tokenizer's file; equal for the same vocabulary file wherever it lies.
    """

    name: str
    sha256: str
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    bos_id: int | None
    eod_id: int | None
    adds_bos: bool = False

    def begin_id(self, begin: str) -> int | None:
        """The id that goes before a document. `auto`: what went there in training, as far as the tokenizer tells.

        The begin token where the tokenizer adds one by itself; else the token that ended the document before; else
        the begin token; else nothing. Raises ConfigError where `begin` names a token that it has not.
        """
        if begin == "auto":
            wanted = (self.bos_id, self.eod_id) if self.adds_bos else (self.eod_id, self.bos_id)
            return next((each for each in wanted if each is not None), None)
        token = {"bos": self.bos_id, "eod": self.eod_id, "none": None}[begin]
        if token is None and begin != "none":
            raise ConfigError(Problem("--begin", f"the tokenizer {self.name} has no such token", "use auto", begin))
        return token


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. `context`: the tokens it was made for. `step`, `consumed_tokens`: where a run tells them."""

    name: str
    path: Path
    kind: str
    context: int
    step: int | None
    consumed_tokens: int | None

    @cached_property
    def coder(self) -> TextCoder:
        """Its tokenizer. Raises CheckpointError where it has none."""
        return _hf_coder(self.path) if self.kind == HF else _native_coder(self)

    def load(self, context):
        """The model with its weights, on this rank of `context` (a ParallelContext): a `scoring.Model`."""
        if self.kind == HF:
            from megatron_sky.inference.hf_model import HfModel

            return HfModel(self.path, context)
        from megatron_sky.inference.native_model import NativeModel

        return NativeModel(self.path, context)


def open_checkpoints(given: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints that `PATH` or `NAME=PATH` arguments mean, each under a name of its own.

    Raises:
        CheckpointError: a path is neither a checkpoint, nor a run with one, nor a Hugging Face folder.
        ConfigError: two would have the same name.
    """
    opened = [_open(each) for each in given]
    names = [file_name(each.name) for each in opened]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            Problem("CHECKPOINT", "two of them have this name", "give names: a=PATH b=PATH", ", ".join(twice))
        )
    return opened


def _open(given: str) -> Checkpoint:
    name, equals, path = given.partition("=")
    if not equals or Path(given).exists():
        name, path = "", given
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{path}: is no folder\n  mend: give a checkpoint, a run or a Hugging Face folder")
    if (folder / _HF_CONFIG).is_file() and not (folder / store.MANIFEST).is_file():
        return Checkpoint(name or folder.resolve().name, folder, HF, _hf_context(folder), None, None)
    found = store.resolve(folder, log.warning)
    saved = state.read_saved(found)
    progress = saved.progress
    name = name or _native_name(found)
    seq_length = saved.config.model.seq_length
    return Checkpoint(name, found, NATIVE, seq_length, progress.get("step"), progress.get("consumed_tokens"))


def _native_name(folder: Path) -> str:
    """`run/step_0000240` for a checkpoint in a run folder, else the folder's own name."""
    folder = folder.resolve()
    return f"{folder.parents[1].name}/{folder.name}" if folder.parent.name == "checkpoints" else folder.name


def file_coder(path: Path, *, adds_bos: bool = False) -> TextCoder:
    """The coder of a tokenizer file. Raises DataError where it can't be read."""
    tokenizer = load_tokenizer(path)
    return TextCoder(
        name=tokenizer.name,
        sha256=tokenizer.sha256,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        bos_id=tokenizer.bos_id,
        eod_id=tokenizer.eod_id,
        adds_bos=adds_bos and tokenizer.bos_id is not None,
    )


def _native_coder(checkpoint: Checkpoint) -> TextCoder:
    """Training here puts the end-of-document token before a document, whatever the tokenizer's settings are.

    Of a checkpoint that was only converted, the settings tell what its training did.
    """
    path = state.tokenizer_in(checkpoint.path)
    return file_coder(path, adds_bos=not checkpoint.consumed_tokens and tokenizer_files.adds_begin(path))


def hf_settings(folder: Path) -> dict:
    """config.json of a Hugging Face folder. Raises CheckpointError."""
    path = folder / _HF_CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: is no description of a model")
    return settings


def is_skywork(settings: dict) -> bool:
    """Whether the folder is one of the published Skywork-13B's form, which transformers knows as LLaMA."""
    return _SKYWORK in (settings.get("architectures") or ())


def _hf_context(folder: Path) -> int:
    settings = hf_settings(folder)
    names = ("max_position_embeddings", "n_positions", "seq_length")
    context = next((settings[name] for name in names if isinstance(settings.get(name), int)), None)
    if context is None:
        raise CheckpointError(f"{folder / _HF_CONFIG}: tells no context length: none of {', '.join(names)}")
    return context


def _hf_coder(folder: Path) -> TextCoder:
    """The tokenizer as those who load the folder get it; its file alone where transformers does not know it."""
    found = find_in_hugging_face(folder)
    known = (folder / tokenizer_files.SETTINGS).is_file() and not is_skywork(hf_settings(folder))
    if found is not None and not known:
        return file_coder(found, adds_bos=tokenizer_files.adds_begin(found))
    transformers = transformers_for(folder)
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: its tokenizer can't be loaded: {error}") from error
    beside = file_coder(found).sha256 if found is not None else ""
    return TextCoder(
        name=found.name if found is not None else type(loaded).__name__,
        sha256=beside,
        encode=lambda text: loaded(text, add_special_tokens=False, verbose=False)["input_ids"],
        decode=lambda ids: loaded.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
        bos_id=loaded.bos_token_id,
        eod_id=loaded.eos_token_id,
        adds_bos=loaded.bos_token_id is not None and loaded("a")["input_ids"][:1] == [loaded.bos_token_id],
    )


def transformers_for(folder: Path):
    """The transformers module, or MissingDependency with the install command."""
    try:
        import transformers
    except ImportError:
        raise MissingDependency(
            "transformers", f"the Hugging Face folder {folder}", "pip install 'megatron-sky[hf]'"
        ) from None
    return transformers

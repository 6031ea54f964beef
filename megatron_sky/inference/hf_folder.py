"""A Hugging Face folder's name and config.json."""

from pathlib import Path

from megatron_sky.errors import CheckpointError
from megatron_sky.files import read_json

HF_CONFIG = "config.json"

_SHAPE = (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"), ("vocab_size",))
_WEIGHTS = ("*.safetensors", "*.bin")
_MOST_LAYERS = 10_000
_MOST_PER_BYTE = 8  # parameters: of one bit
_SKYWORK = "SkyworkForCausalLM"  # LLaMA under another name, in folders that bring code of their own


def hf_settings(folder: Path) -> dict:
    """config.json of a Hugging Face folder. Raises CheckpointError."""
    path = folder / HF_CONFIG
    try:
        settings = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: is no description of a model")
    return settings


def is_skywork(settings: dict) -> bool:
    """Whether the folder is one of the published Skywork-13B's form, which transformers knows as LLaMA."""
    architectures = settings.get("architectures")
    return isinstance(architectures, list) and _SKYWORK in architectures


def check_name(folder: Path) -> None:
    """Raises CheckpointError for a name that Hugging Face's libraries can't open."""
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        fix = "give the folder, and those that it lies in, names in UTF-8"
        raise CheckpointError(
            f"{folder}: its name is no UTF-8, which Hugging Face's libraries need\n  fix: {fix}"
        ) from None


def check_size(folder: Path, settings: dict) -> None:
    """Raises CheckpointError where config.json describes a larger model than the weight files beside it can hold: it
    would be made before the weights are looked at."""
    layers, width, tokens = (_count(settings, names) for names in _SHAPE)
    described = width * (layers * width + tokens)  # at the least: one square matrix a layer, and an embedding
    there = sum(path.stat().st_size for ending in _WEIGHTS for path in folder.glob(ending))
    if layers > _MOST_LAYERS or described > _MOST_PER_BYTE * there:
        raise CheckpointError(
            f"{folder / HF_CONFIG}: {layers:,} layers of width {width:,} and {tokens:,} tokens are at least "
            f"{described:,} parameters; the weight files beside it have {there:,} bytes\n"
            "  fix: fetch or export the folder again"
        )


def _count(settings: dict, names: tuple[str, ...]) -> int:
    given = next((settings[name] for name in names if settings.get(name) is not None), 0)
    if type(given) is not int or given < 0:
        raise CheckpointError(f"{names[0]} = {given!r} in {HF_CONFIG}: must be a whole number")
    return given


def said(error: Exception) -> str:
    """An error of Hugging Face's libraries in a line, without torch's advice to run a pickle that it refuses."""
    text = str(error).partition("\n")[0]
    return type(error).__name__ if not text or "eights only" in text or "weights_only" in text else text

"""A Hugging Face folder's config.json, and the library that runs such folders."""

from pathlib import Path

from megatron_sky.errors import CheckpointError, MissingDependency
from megatron_sky.files import read_json

HF_CONFIG = "config.json"

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
    return _SKYWORK in (settings.get("architectures") or ())


def transformers_for(folder: Path):
    """The transformers module, or MissingDependency with the install command."""
    try:
        import transformers
    except ImportError:
        raise MissingDependency(
            "transformers", f"the Hugging Face folder {folder}", "pip install 'megatron-sky[hf]'"
        ) from None
    return transformers

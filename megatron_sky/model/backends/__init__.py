"""Compute backends: each gives megatron-core the modules of a transformer layer, under the same checkpoint names."""

from megatron_sky.config.schema import Fp8Config, ModelConfig
from megatron_sky.distributed.machine import this_machine
from megatron_sky.errors import ConfigError, Problem


def choose_backend(model: ModelConfig, on_gpu: bool) -> tuple[str, str]:
    """The backend's name, `te` or `torch`, and the reason in words."""
    if model.backend == "torch":
        return "torch", "the recipe asks for it"
    missing = _why_no_te(on_gpu)
    if model.backend == "te" and missing:
        fix = "set model.backend=torch, or run where both are present (an NGC PyTorch container has them)"
        raise ConfigError(Problem("model.backend", f"can't be used here: {missing}", fix, "te"))
    if missing:
        return "torch", missing
    return "te", "the recipe asks for it" if model.backend == "te" else "CUDA and Transformer Engine are present"


def build_layer_specs(model: ModelConfig, fp8: Fp8Config | None, backend: str, numbers: range) -> tuple[list, type]:
    """(specs of the layers `numbers`, counted from 0; final norm) for megatron-core's transformer block."""
    if backend == "te":
        from megatron_sky.model.backends import te

        return [te.layer_spec()] * len(numbers), te.final_norm()
    from megatron_sky.model.backends import torch_backend

    narrow = [fp8 is not None and not _stays_wide(fp8, number, model.num_layers) for number in numbers]
    specs = [torch_backend.layer_spec(model.normalization, fp8=fp8) for fp8 in narrow]
    return specs, torch_backend.final_norm(model.normalization)


def _stays_wide(fp8: Fp8Config, number: int, num_layers: int) -> bool:
    return fp8.first_last_layers_bf16 and number in (0, num_layers - 1)


def _why_no_te(on_gpu: bool) -> str:
    if not on_gpu:
        return "this machine has no CUDA device"
    try:
        import transformer_engine.pytorch  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("transformer_engine"):
            return "Transformer Engine is not installed"
        return _unusable(error)
    except (ImportError, OSError, RuntimeError, AssertionError) as error:  # built for another CUDA or torch
        return _unusable(error)
    return ""


def _unusable(error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return f"Transformer Engine can't be imported ({this_machine().words()}): {reason[0] if reason else repr(error)}"

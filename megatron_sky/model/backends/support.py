"""What a machine can't do for a recipe, told before anything is built. Pure: from the machine's facts."""

from megatron_sky.config.schema import KernelsConfig, PrecisionConfig
from megatron_sky.distributed.machine import Machine
from megatron_sky.errors import Problem
from megatron_sky.versions import release

# The first Transformer Engine that has each recipe (megatron-core's fp8_utils asks for the same).
_TE_RECIPES = {"delayed": (1, 0), "mxfp8": (2, 1), "tensorwise": (2, 2), "blockwise": (2, 3)}


def machine_problems(
    machine: Machine, backend: str, *, precision: PrecisionConfig, kernels: KernelsConfig
) -> list[Problem]:
    """Every broken rule; a machine without a GPU emulates 8 bits and runs no fused kernels, so it has none."""
    problems = _versions(machine) if backend == "te" else []
    if machine.gpu is None:
        return problems
    if kernels.gradient_accumulation_fusion and not machine.apex:
        fix = "build apex with --cuda_ext (NGC's PyTorch container has it), or set it to false"
        rule = "needs apex's fused_weight_gradient_mlp_cuda, which is not installed"
        problems.append(Problem("kernels.gradient_accumulation_fusion", rule, fix, True))
    if precision.fp8 is not None:
        problems += _fp8(machine, backend, precision.fp8.recipe)
    return problems


def _versions(machine: Machine) -> list[Problem]:
    """Transformer Engine's core library is built for one major version of CUDA."""
    torch_cuda = release(machine.cuda_version)[:1]
    if machine.te_cuda and torch_cuda and torch_cuda != (machine.te_cuda,):
        fix = f"pip install transformer-engine[pytorch,core_cu{torch_cuda[0]}], or model.backend=torch"
        return [Problem("model.backend", f"does not fit together: {machine.words()}", fix, "te")]
    return []


def _fp8(machine: Machine, backend: str, recipe: str) -> list[Problem]:
    where, capability = "precision.fp8.recipe", machine.capability or (0, 0)
    named = f"{machine.gpu} (compute capability {capability[0]}.{capability[1]})"
    if capability < (8, 9):
        fix = "set precision.fp8=null, or use a Hopper GPU or a newer one"
        return [Problem("precision.fp8", f"needs a GPU with 8-bit tensor cores, which {named} is not", fix, recipe)]
    problems = []
    if recipe == "mxfp8" and capability[0] != 10:
        fix = "use delayed or tensorwise"
        problems.append(
            Problem(where, f"needs a Blackwell GPU (compute capability 10.x); this is {named}", fix, recipe)
        )
    if recipe == "blockwise" and (capability < (9, 0) or release(machine.cuda_version) < (12, 9)):
        rule = f"needs a Hopper GPU and CUDA 12.9; this is {named} with CUDA {machine.cuda_version}"
        problems.append(Problem(where, rule, "use delayed or tensorwise", recipe))
    if backend == "te" and release(machine.te) < _TE_RECIPES[recipe]:
        wanted = ".".join(map(str, _TE_RECIPES[recipe]))
        fix = f'pip install "transformer-engine[pytorch]>={wanted}"'
        problems.append(Problem(where, f"needs Transformer Engine {wanted}; {machine.te} is installed", fix, recipe))
    return problems

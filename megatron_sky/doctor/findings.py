"""What the facts mean: pure rules. A blocking finding stops a run; any other only costs something, and says what."""

from dataclasses import dataclass

from megatron_sky.distributed.requirements import PACKAGE, PYTHON, Requirement

SLOW_DISK_MB = 100.0


@dataclass(frozen=True)
class Finding:
    """One thing to know: what, what it costs, and the command or step that fixes it."""

    blocking: bool
    what: str
    costs: str
    fix: str


# name -> (blocking, what it costs to be without)
_NEEDED = {
    "megatron-core": (True, "nothing trains"),
    "psutil": (True, "megatron-core's checkpoint writers hang"),
    "einops": (True, "megatron-core makes no process groups"),
    "sentencepiece": (True, "no text is tokenized"),
    "nltk": (False, "`data tokenize --split-sentences` can't split sentences"),
    "tensorboard": (False, "no TensorBoard files (monitor.tensorboard)"),
    "transformers": (False, "no parity checks against Hugging Face"),
}
_NEEDED_ON_GPU = {
    "transformer-engine": (
        "fused norm+linear, its fused attention, blockwise and mxfp8 recipes, tp_comm_overlap, CUDA graphs",
        'pip install --no-build-isolation "transformer-engine[pytorch]"  (NGC\'s PyTorch container has it)',
    ),
}


def judge(facts: dict, trials: dict) -> list[Finding]:
    """Every finding, the blocking ones first."""
    findings = [*_software(facts), *_gpus(facts), *_network(facts), *_trials(trials)]
    return sorted(findings, key=lambda finding: not finding.blocking)


def _software(facts: dict) -> list[Finding]:
    findings = []
    tested = {requirement["name"]: Requirement(**requirement) for requirement in facts["requirements"]}
    for name, (blocking, costs) in _NEEDED.items():
        if facts["packages"][name] is None:
            fix = tested[name].fix() if name in tested else f"pip install {name}"
            findings.append(Finding(blocking, f"{name} is not installed", costs, fix))
    for requirement in tested.values():
        if requirement.is_outside:
            blocking = requirement.is_older and requirement.name in (PYTHON, "megatron-core", "torch")
            costs = "calls may fail or mean something else"
            findings.append(Finding(blocking, requirement.words(), costs, requirement.fix()))
    if not tested:
        what, costs = f"{PACKAGE} is not installed, it runs from a folder", "which versions were tested is not known"
        findings.append(Finding(False, what, costs, "pip install -e . in the folder"))
    return findings


def _gpus(facts: dict) -> list[Finding]:
    findings = []
    if not facts["gpus"]:
        if facts["driver"]:
            build = f"CUDA {facts['torch_cuda']}" if facts["torch_cuda"] else "a CPU build"
            what = f"the driver ({facts['driver']}) sees a GPU, torch {facts['torch']} ({build}) does not"
            fix = "install a torch build for a CUDA that this driver supports: https://pytorch.org/get-started"
            findings.append(Finding(True, what, "everything runs on the CPU", fix))
        return findings
    for name, (costs, fix) in _NEEDED_ON_GPU.items():
        if facts["packages"][name] is None:
            findings.append(Finding(False, f"{name} is not installed", f"without it: {costs}", fix))
    unusable = facts["packages"]["transformer-engine"] is not None and facts["backend"] != "te"
    if unusable:
        fix = "install the build for this torch and CUDA, or set model.backend=torch"
        findings.append(Finding(True, facts["backend_reason"], "the te backend can't be used", fix))
    if not facts["gradient_accumulation_fusion"]:
        fix = "build apex with --cpp_ext --cuda_ext (NGC's PyTorch container has it)"
        costs = "kernels.gradient_accumulation_fusion can't be used: weight gradients take a second pass"
        findings.append(Finding(False, "apex's fused_weight_gradient_mlp_cuda is not installed", costs, fix))
    names = {gpu["name"] for gpu in facts["gpus"]}
    if len(names) > 1:
        fix = "use equal GPUs (CUDA_VISIBLE_DEVICES chooses)"
        findings.append(Finding(False, f"different GPUs: {', '.join(sorted(names))}", "all wait for the slowest", fix))
    for name in sorted({gpu["name"] for gpu in facts["gpus"] if gpu["peak_tflops"] is None}):
        findings.append(Finding(False, f"the peak of {name} is not known", "no MFU", "set monitor.peak_tflops"))
    return findings


def _network(facts: dict) -> list[Finding]:
    findings = []
    if len(facts["gpus"]) > 1 and facts["nvlink"] == 0:
        costs = "tensor parallelism goes over PCIe, several times slower"
        findings.append(Finding(False, "no NVLink between the GPUs", costs, "prefer pipeline and data parallelism"))
    down = [f"{port['device']}/{port['port']}" for port in facts["infiniband"] if "ACTIVE" not in port["state"]]
    if down:
        what = f"InfiniBand ports that are not active: {', '.join(down)}"
        findings.append(
            Finding(False, what, "nodes talk over fewer or slower links", "look at `ibstat` and the cables")
        )
    return findings


def _trials(trials: dict) -> list[Finding]:
    findings = []
    ranks, disk = trials["ranks"], trials["disk"]
    if not ranks["ok"]:
        what = f"{ranks['world_size']} local ranks over {ranks['backend']}: {ranks['reason']}"
        fix = "NCCL_DEBUG=INFO megatron-sky doctor shows where it stops"
        findings.append(Finding(True, what, "no parallel run will work", fix))
    if disk["reason"]:
        findings.append(
            Finding(True, f"{disk['folder']}: {disk['reason']}", "no run can be saved", "choose another folder")
        )
    elif disk["write_mb_per_second"] < SLOW_DISK_MB:
        what = f"{disk['folder']} takes {disk['write_mb_per_second']:.0f} MB/s"
        costs = (
            f"a 13 B checkpoint (194 GB) takes {194_000 / disk['write_mb_per_second'] / 60:.0f} minutes from one node"
        )
        findings.append(Finding(False, what, costs, "use a faster or a parallel file system for run folders"))
    return findings

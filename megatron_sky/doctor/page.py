"""The doctor's report as text."""


def text(report: dict) -> str:
    """Facts, trials and findings, a line each."""
    facts, trials = report["facts"], report["trials"]
    ranges = {requirement["name"]: f", tested {requirement['tested']}" for requirement in facts["requirements"]}
    cuda = facts["torch_cuda"] or "none"

    def tested(name: str) -> str:
        return ranges.get(name, "")

    lines = [
        _line("python", f"{facts['python']}{tested('Python')} ({facts['executable']})"),
        _line("machine", f"{facts['platform']}, {facts['cores']} cores, {facts['memory_gib']} GiB"),
        _line("torch", f"{facts['torch']}{tested('torch')}, CUDA {cuda}, driver {facts['driver'] or 'none'}"),
        *[_line("gpu", _gpu(gpu)) for gpu in facts["gpus"] or [None]],
        _line("network", _network(facts)),
        *[_line(name, f"{version or 'not installed'}{tested(name)}") for name, version in facts["packages"].items()],
        _line("backend", f"{facts['backend']} ({facts['backend_reason']})"),
        _line("Adam", facts["adam"]),
        _line("ranks", _ranks(trials["ranks"])),
        _line("disk", _disk(trials["disk"])),
        "",
    ]
    for finding in report["findings"]:
        lines += [
            f"{'PROBLEM' if finding['blocking'] else 'note   '} {finding['what']}",
            f"        costs: {finding['costs']}",
            f"        fix: {finding['fix']}",
        ]
    return "\n".join([*lines, "healthy" if report["healthy"] else "this machine can't train as it is"])


def _line(name: str, value: str) -> str:
    return f"{name:<20}{value}"


def _gpu(gpu: dict | None) -> str:
    if gpu is None:
        return "none: everything runs on the CPU"
    peak = gpu["peak_tflops"]
    known = ", ".join(f"{name} {value:g}" for name, value in peak.items() if value) if peak else "unknown"
    major, minor = gpu["capability"]
    return f"{gpu['name']}, {gpu['memory_gib']} GiB, compute capability {major}.{minor}, peak TFLOP/s: {known}"


def _network(facts: dict) -> str:
    links = "unknown" if facts["nvlink"] is None else f"{facts['nvlink']} between two GPUs"
    ports = ", ".join(f"{port['device']} {port['rate']} {port['state']}" for port in facts["infiniband"]) or "none"
    return f"NCCL {facts['nccl'] or 'none'}, NVLinks {links}, InfiniBand {ports}"


def _ranks(ranks: dict) -> str:
    if not ranks["ok"]:
        return f"{ranks['world_size']} over {ranks['backend']}: FAILED, {ranks['reason']}"
    speed = ranks["all_reduce_gb_per_second"]
    return f"{ranks['world_size']} over {ranks['backend']} talk; all-reduce {speed:g} GB/s"


def _disk(disk: dict) -> str:
    if disk["reason"]:
        return f"{disk['folder']}: FAILED, {disk['reason']}"
    return f"{disk['folder']}: writes {disk['write_mb_per_second']:g} MB/s, {disk['free_gb']:g} GB free"

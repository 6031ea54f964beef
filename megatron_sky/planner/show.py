"""Forecasts and checks as text."""

from collections.abc import Sequence
from dataclasses import fields

from megatron_sky.config import Config
from megatron_sky.config.units import format_count
from megatron_sky.errors import Problem
from megatron_sky.planner.forecast import Forecast, usable_bytes
from megatron_sky.planner.goodput import (
    HOUR,
    LEAST_TRAINED,
    Reliability,
    best_interval,
    goodput,
    spares_worth_having,
    young_daly,
)
from megatron_sky.planner.memory import GIB, Memory
from megatron_sky.planner.published import Row, by_source, memory_errors, speed_errors
from megatron_sky.planner.scaling import Point
from megatron_sky.planner.search import Candidate, SearchOutcome, largest_part

_PARTS = {
    "products": "matrix products",
    "attention": "attention",
    "memory_kernels": "norms, activations, positions, sums of gradients",
    "tensor_parallel": "tensor-parallel collectives that nothing hides",
    "context_parallel": "context-parallel collectives that nothing hides",
    "weights": "sharded weights",
    "recompute": "recomputation",
    "imbalance": "imbalance of embedding and output layer",
    "bubble": "pipeline bubble",
    "p2p": "sends between stages",
    "data_parallel": "gradient reduction and weight gathering that nothing hides",
    "optimizer": "optimizer",
    "host": "host, once a step",
}


def explain(forecast: Forecast, tokens: int) -> list[str]:
    """Every part of a layout's memory and step."""
    return [*_memory_lines(forecast), "", *_step_lines(forecast), "", *_budget_lines(forecast, tokens)]


def _memory_lines(forecast: Forecast) -> list[str]:
    names = [field.name for field in fields(Memory)]
    room = usable_bytes(forecast.job) / GIB
    lines = [f"memory      GiB of a GPU at its peak, by pipeline stage; {room:.1f} can be used"]
    lines.append("  stage  " + "".join(f"{name:>12}" for name in (*names, "total")))
    for stage, memory in enumerate(forecast.stages):
        values = [*(getattr(memory, name) for name in names), memory.total]
        mark = "" if memory.total / GIB <= room else "  does not fit"
        lines.append(f"  {stage:<5}  " + "".join(f"{value / GIB:12.2f}" for value in values) + mark)
    return lines


def _step_lines(forecast: Forecast) -> list[str]:
    step, job = forecast.step, forecast.job
    total = step.total
    lines = [f"step        {total:.3f} s; {job.num_microbatches} micro batches of {job.micro_batch_size}"]
    for name, seconds in step.parts().items():
        if seconds > 0:
            lines.append(f"  {seconds:9.3f} s  {100 * seconds / total:5.1f} %  {_PARTS[name]}")
    return lines


def _budget_lines(forecast: Forecast, tokens: int) -> list[str]:
    energy = forecast.kwh(tokens)
    used = "energy not known, as the GPU's file has no watts" if energy is None else f"{energy:,.0f} kWh"
    peak = "the fastest measured product" if forecast.job.rates is not None else "the 16-bit peak"
    return [
        f"speed       {forecast.tokens_per_second_per_gpu:,.0f} tokens/s a GPU; MFU {100 * forecast.mfu():.1f} % "
        f"(6 N + 12 L h s FLOPs a token, as the program logs), {100 * forecast.causal_mfu():.1f} % counting causal "
        f"attention and no embedding; of {peak}",
        f"budget      {format_count(tokens)} tokens: {forecast.days(tokens):.1f} days, "
        f"{forecast.gpu_hours(tokens):,.0f} GPU-hours, {used}",
    ]


def search_lines(outcome: SearchOutcome, config: Config, *, top: int, seconds: float) -> list[str]:
    """The best layouts, what the best costs, and why the others fell."""
    best = outcome.fitting[0].forecast
    job, tokens = best.job, config.train.tokens
    lines = [
        f"{job.layout.world_size} {job.cluster.gpu.name}, {job.global_batch_size:,} sequences of "
        f"{job.model.seq_length:,} tokens a step: {outcome.tried:,} layouts in {seconds:.1f} s",
        f"{'':5}{'tokens/s':>9}{'MFU %':>7}{'GiB':>7}{'days':>8}   layout",
    ]
    for number, candidate in enumerate(_worth_showing(outcome.fitting, top), 1):
        f = candidate.forecast
        speed, memory = f.tokens_per_second_per_gpu, f.memory.total / GIB
        lines.append(
            f"{number:4} {speed:9,.0f}{100 * f.mfu():7.1f}{memory:7.1f}{f.days(tokens):8.1f}   {candidate.words}"
        )
    lines += ["", *_budget_lines(best, tokens), "", "fell"]
    lines += [f"  {count:6,} break a rule: {rule}" for rule, count in outcome.broken.most_common(8)]
    lines += [f"  {count:6,} do not fit, most of it {part}" for part, count in outcome.too_large.most_common()]
    return [*lines, f"  {len(outcome.fitting) - 1:6,} fit and are slower"]


def _worth_showing(fitting: Sequence[Candidate], top: int) -> list[Candidate]:
    """The fastest, without those that differ in recomputation or sharding alone and save no memory by it."""
    shown: list[Candidate] = []
    for candidate in fitting:
        same = [other for other in shown if _sizes(other) == _sizes(candidate)]
        if all(candidate.forecast.memory.total < other.forecast.memory.total for other in same):
            shown.append(candidate)
        if len(shown) == top:
            break
    return shown


def _sizes(candidate: Candidate) -> tuple:
    job = candidate.forecast.job
    return job.layout, job.micro_batch_size, job.sequence_parallel, job.product_format


def does_not_fit(layout: str, forecast: Forecast, fixes: Sequence[Candidate]) -> Problem:
    """The part that is too large, and changes that make the layout fit, with what they would do."""
    memory, job = forecast.memory, forecast.job
    part = largest_part(memory)
    rule = (
        f"needs {memory.total / GIB:.1f} GiB of the {usable_bytes(job) / GIB:.1f} that a program can use of "
        f"{job.cluster.gpu.name}; most of it is {part}, {getattr(memory, part) / GIB:.1f}"
    )
    changes = [candidate.summary for candidate in fixes]
    none = "no single change makes it fit; leave --explain out to search all layouts"
    return Problem("--explain", rule, "; or ".join(changes) or none, layout)


def scale_lines(points: Sequence[Point], *, weak: bool) -> list[str]:
    """A line for each number of GPUs: the best layout, its speed beside the first, and what limits it."""
    kind = "weak scaling: the batch grows with the GPUs" if weak else "strong scaling: the recipe's batch"
    lines = [
        kind,
        f"{'GPUs':>8}{'batch':>9}{'tokens/s':>10}{'of first':>10}{'MFU %':>7}{'GiB':>7}   layout; limit",
    ]
    for point in points:
        line = f"{point.num_gpus:8,}{point.global_batch_size:9,}"
        if point.best is None:
            lines.append(f"{line}{'-':>10}{'-':>10}{'-':>7}{'-':>7}   {point.limit}")
            continue
        f = point.best.forecast
        line += f"{f.tokens_per_second_per_gpu:10,.0f}{point.efficiency:10.1%}{100 * f.mfu():7.1f}"
        lines.append(f"{line}{f.memory.total / GIB:7.1f}   {point.best.words}; {point.limit}")
    return [*lines, ""]


def goodput_lines(forecast: Forecast, r: Reliability, tokens: int) -> list[str]:
    """The best checkpoint interval, the share of time that trains, and what spare nodes bring."""
    interval, seconds = best_interval(r), forecast.step.total
    steps = max(1, round(interval / seconds))
    spares = spares_worth_having(interval, r)
    share = goodput(steps * seconds, r)
    worth, _, _ = max(spares, key=lambda item: item[2])
    lines = [
        f"failures    {r.num_nodes} nodes, each {r.node_mtbf_hours:,.0f} hours apart: one every "
        f"{r.job_mtbf_seconds / HOUR:.1f} hours; {r.restart_seconds / 60:g} minutes to train again, "
        f"{r.repair_hours:g} hours to repair",
        f"checkpoints {r.checkpoint_stall_seconds:.1f} s of waiting each; best every {interval:,.0f} s, {steps:,} "
        f"steps of {seconds:.2f} s (checkpoint.interval: {steps} steps); Young and Daly: {young_daly(r):,.0f} s",
        f"goodput     {share:.1%} of the time trains, where a spare node is at hand: "
        f"{forecast.tokens_per_second_per_gpu * share:,.0f} tokens/s a GPU, {forecast.days(tokens) / share:.1f} days "
        f"for {format_count(tokens)} tokens in place of {forecast.days(tokens):.1f}",
        "spares      nodes, share of time that trains, share for all nodes paid for (played through)",
    ]
    shown = [row for row in spares if row[1] >= LEAST_TRAINED]
    if len(shown) < len(spares):
        fewest = f"with at least {shown[0][0]}" if shown else f"even with {spares[-1][0]}"
        lines.append(f"  {fewest} spare nodes {'' if shown else 'less than '}{LEAST_TRAINED:.0%} of the time trains")
    for number, trained, paid in shown:
        lines.append(f"  {number:6}{trained:10.1%}{paid:10.1%}{'   worth having' if number == worth else ''}")
    if worth == spares[-1][0] and shown:
        lines.append("  more spare nodes would help further: nodes fail about as fast as they are repaired")
    return lines


def check_lines(rows: Sequence[Row], passed_over: Sequence[str]) -> list[str]:
    """The prediction beside every published row, and the errors by source."""
    lines = [f"{'row':44}{'tokens/s':>10}{'predicted':>11}{'error':>8}{'GB':>9}{'predicted':>11}{'error':>8}"]
    lines += [_check_line(row) for row in rows]
    lines += [
        "",
        f"{'source':66}{'rows':>5}  {'tokens/s: mean':>15}{'bias':>8}{'worst':>8}  {'GB: mean':>9}{'worst':>8}",
    ]
    for source, group in (*by_source(rows).items(), ("all", rows)):
        speed, memory = speed_errors(group), memory_errors(group)
        shown = f"{speed.mean:15.1%}{speed.bias:+8.1%}{speed.worst:+8.1%}" if speed.values else f"{'-':>31}"
        shown += f"  {memory.mean:9.1%}{memory.worst:+8.1%}" if memory.values else ""
        lines.append(f"{source[:65]:66}{len(group):5}  {shown}")
    lines += [f"passed over {row}" for row in passed_over]
    return lines


def _check_line(row: Row) -> str:
    line = f"{row.id:44}"
    if row.tokens_per_s:
        predicted = row.predicted_speed()
        line += f"{row.tokens_per_s:10,.0f}{predicted:11,.0f}{predicted / row.tokens_per_s - 1:+8.1%}"
    else:
        line += " " * 29
    if row.memory_gb:
        predicted = row.predicted_memory()
        line += f"{row.memory_gb:9.1f}{predicted:11.1f}{predicted / row.memory_gb - 1:+8.1%}"
    elif row.out_of_memory:
        room = usable_bytes(row.job) / 1e9
        predicted = row.predicted_memory()
        verdict = "does not fit" if predicted > room else f"fits in {room:.0f}"
        line += f"{'none':>9}{predicted:11.1f}  {verdict}"
    return line.rstrip()

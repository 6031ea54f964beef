"""Rules that span sections or need the number of ranks, checked before anything is built.

Pure arithmetic: no torch. `problems` stop a run, `notes` are told and do not. A rule that one field can break on its
own stands at that field in `schema.py`.
"""

from megatron_sky.config.finetune_rules import finetune_problems
from megatron_sky.config.schema import BatchRampup, Config, ParallelConfig, Ramp, ScheduleConfig, TrainConfig
from megatron_sky.errors import ConfigError, Problem


def check(config: Config, world_size: int) -> None:
    """Raises ConfigError with every broken rule of `config` on `world_size` ranks."""
    problems = find_problems(config, world_size)
    if problems:
        raise ConfigError(problems)


def data_parallel_size(config: Config, world_size: int) -> int:
    """world_size / (tp * pp * cp); 0 where it does not divide."""
    p = config.parallel
    size, rest = divmod(world_size, p.tp_size * p.pp_size * p.cp_size)
    return size if rest == 0 else 0


def batch_sizes(global_batch_size: int, rampup: BatchRampup | None) -> list[int]:
    """Every global batch size (sequences) that the run will use, in order."""
    if rampup is None:
        return [global_batch_size]
    return [*range(rampup.start_size, global_batch_size, rampup.increment), global_batch_size]


def find_problems(config: Config, world_size: int) -> list[Problem]:
    problems: list[Problem] = []
    problems += _layout(config, world_size)
    problems += _shape(config)
    problems += _batch(config, world_size)
    problems += _precision(config)
    problems += _kernels(config)
    problems += _sampling(config)
    problems += _time_limit(config)
    problems += finetune_problems(config)
    if config.model.backend != "auto":
        problems += backend_problems(config, config.model.backend)
    for prefix, schedule, tokens in _schedules(config):
        problems += _schedule(prefix, schedule, tokens)
    return problems


def find_notes(config: Config, world_size: int) -> list[str]:
    notes = []
    p, t = config.parallel, config.train
    dp_size = data_parallel_size(config, world_size)
    last = batch_sizes(t.global_batch_size, t.batch_rampup)[-1]
    num_microbatches = last // (t.micro_batch_size * dp_size)
    if p.pp_size > 1 and num_microbatches < p.pp_size:
        notes.append(
            f"{num_microbatches} micro batches on {p.pp_size} pipeline stages leave most stages idle most of the time; "
            f"a global batch of {p.pp_size * 4 * t.micro_batch_size * dp_size} sequences would not"
        )
    step_tokens = last * config.model.seq_length
    if t.batch_rampup is None and not config.sessions and t.tokens % step_tokens:
        whole = -(-t.tokens // step_tokens)
        notes.append(
            f"train.tokens = {t.tokens:,} is no multiple of a step's {step_tokens:,} tokens; the run ends at "
            f"{whole * step_tokens:,} (step {whole})"
        )
    if config.checkpoint.interval is None:
        ends = "each session's end" if config.sessions else "the run's end"
        notes.append(f"checkpoint.interval is not set: the only checkpoint is the one at {ends}")
    return notes


def _layout(config: Config, world_size: int) -> list[Problem]:
    p = config.parallel
    problems = []
    split = p.tp_size * p.pp_size * p.cp_size
    if world_size % split:
        problems.append(
            Problem(
                "parallel.tp_size * pp_size * cp_size",
                f"must divide the number of ranks, {world_size}",
                f"use {_next_multiple(world_size, split)} ranks, or sizes whose product divides {world_size}",
                split,
            )
        )
    if p.sequence_parallel and p.tp_size == 1:
        problems.append(
            Problem(
                "parallel.sequence_parallel",
                "needs parallel.tp_size above 1",
                "set parallel.sequence_parallel=false or raise parallel.tp_size",
                True,
            )
        )
    if p.vpp_size > 1 and p.pp_size == 1:
        problems.append(
            Problem("parallel.vpp_size", "needs parallel.pp_size above 1", "set parallel.vpp_size=1", p.vpp_size)
        )
    if p.overlap_param_gather and not p.distributed_optimizer:
        problems.append(
            Problem(
                "parallel.overlap_param_gather",
                "needs parallel.distributed_optimizer",
                "set parallel.distributed_optimizer=true or parallel.overlap_param_gather=false",
                True,
            )
        )
    if p.overlap_param_gather and not p.overlap_grad_reduce:
        problems.append(
            Problem(
                "parallel.overlap_param_gather",
                "needs parallel.overlap_grad_reduce",
                "set parallel.overlap_grad_reduce=true",
                True,
            )
        )
    return problems


def _shape(config: Config) -> list[Problem]:
    m, p, t = config.model, config.parallel, config.train
    rules = [
        ("model.num_attention_heads", m.num_attention_heads, p.tp_size, "parallel.tp_size"),
        ("model.num_query_groups", m.query_groups, p.tp_size, "parallel.tp_size"),
        ("model.ffn_hidden_size", m.ffn_hidden_size, p.tp_size, "parallel.tp_size"),
        ("model.vocab_multiple", m.vocab_multiple, p.tp_size, "parallel.tp_size"),
        ("model.num_attention_heads", m.num_attention_heads, m.query_groups, "model.num_query_groups"),
        ("model.num_layers", m.num_layers, p.pp_size * p.vpp_size, "parallel.pp_size * vpp_size"),
    ]
    if m.kv_channels is None:
        rules.append(("model.hidden_size", m.hidden_size, m.num_attention_heads, "model.num_attention_heads"))
    if p.cp_size > 1:
        rules.append(("model.seq_length", m.seq_length, 2 * p.cp_size, "2 * parallel.cp_size"))
    if p.sequence_parallel:
        rules.append(("model.seq_length", m.seq_length, p.cp_size * p.tp_size, "parallel.cp_size * tp_size"))
    problems = _divides(rules)
    layers = m.num_layers // (p.pp_size * p.vpp_size)
    if t.recompute == "full" and t.recompute_num_layers > max(layers, 1):
        rule = f"must be at most the {layers} layers of one pipeline stage or model chunk"
        fix = f"use a value up to {layers}"
        problems.append(Problem("train.recompute_num_layers", rule, fix, t.recompute_num_layers))
    if m.rope_scaling is not None and m.position_embedding != "rope":
        rule = "needs model.position_embedding=rope"
        problems.append(Problem("model.rope_scaling", rule, "remove it", str(m.rope_scaling)))
    if m.position_embedding == "rope" and m.head_size % 2:
        rule = "must be even for rotary positions"
        problems.append(Problem("model.kv_channels", rule, "use an even head size", m.head_size))
    return problems


def _precision(config: Config) -> list[Problem]:
    """8-bit products want every dimension of a product to be a multiple of 16, or of a block."""
    m, p, t, fp8 = config.model, config.parallel, config.train, config.precision.fp8
    if fp8 is None:
        return []
    problems = []
    if config.precision.dtype == "fp16":
        problems.append(Problem("precision.dtype", "can't go with precision.fp8", "set precision.dtype=bf16", "fp16"))
    block = {"blockwise": 128, "mxfp8": 32}.get(fp8.recipe, 16)
    heads, groups = m.num_attention_heads * m.head_size, m.query_groups * m.head_size
    sizes = [
        ("model.hidden_size", m.hidden_size, 1),
        ("model.ffn_hidden_size / parallel.tp_size", m.ffn_hidden_size, p.tp_size),
        ("model.num_attention_heads * head size / parallel.tp_size", heads, p.tp_size),
        (
            "model.(num_attention_heads + 2 * num_query_groups) * head size / parallel.tp_size",
            heads + 2 * groups,
            p.tp_size,
        ),
        ("train.micro_batch_size * model.seq_length / parallel.cp_size", t.micro_batch_size * m.seq_length, p.cp_size),
    ]
    for where, size, parts in sizes:
        if size % parts == 0 and size // parts % block:  # what does not divide is told elsewhere
            rule = f"must be a multiple of {block} for precision.fp8.recipe={fp8.recipe}"
            fix = f"use {_next_multiple(size // parts, block)}, or precision.fp8=null"
            problems.append(Problem(where, rule, fix, size // parts))
    if fp8.param_gather and not p.distributed_optimizer:
        fix = "set parallel.distributed_optimizer=true or precision.fp8.param_gather=false"
        problems.append(Problem("precision.fp8.param_gather", "needs parallel.distributed_optimizer", fix, True))
    if fp8.param_gather and fp8.recipe == "mxfp8" and p.overlap_param_gather:
        rule = "can't go with precision.fp8.param_gather of mxfp8, which gathers through the gradients' memory"
        fix = "set parallel.overlap_param_gather=false or precision.fp8.param_gather=false"
        problems.append(Problem("parallel.overlap_param_gather", rule, fix, True))
    validation = config.validation.micro_batch_size
    if validation is not None and validation * m.seq_length // p.cp_size % block:
        rule = f"must give a multiple of {block} tokens a rank for precision.fp8.recipe={fp8.recipe}"
        problems.append(Problem("validation.micro_batch_size", rule, "leave it out", validation))
    return problems


def _kernels(config: Config) -> list[Problem]:
    k, m, p, t = config.kernels, config.model, config.parallel, config.train
    problems = []
    if p.tp_comm_overlap and not p.sequence_parallel:
        fix = "set parallel.sequence_parallel=true or parallel.tp_comm_overlap=false"
        problems.append(Problem("parallel.tp_comm_overlap", "needs parallel.sequence_parallel", fix, True))
    other = config.validation.micro_batch_size
    if p.tp_comm_overlap and other not in (None, t.micro_batch_size):
        rule = f"must be train.micro_batch_size ({t.micro_batch_size}) with parallel.tp_comm_overlap"
        problems.append(Problem("validation.micro_batch_size", rule, "leave it out", other))
    if k.deterministic and p.tp_comm_overlap:
        fix = "set one of them to false"
        problems.append(Problem("kernels.deterministic", "can't go with parallel.tp_comm_overlap", fix, True))
    obstacles = {
        "train.recompute": t.recompute != "none",
        "data.document_mask (lengths that change)": config.data.document_mask,
        "model.hidden_dropout or attention_dropout (random numbers)": m.hidden_dropout > 0 or m.attention_dropout > 0,
        "train.batch_rampup": t.batch_rampup is not None,
    }
    for name in [name for name, there in obstacles.items() if there and k.cuda_graphs]:
        problems.append(Problem("kernels.cuda_graphs", f"can't go with {name}", "set kernels.cuda_graphs=false", True))
    return problems


def _sampling(config: Config) -> list[Problem]:
    """What megatron-core's own order does not know."""
    data = config.data
    if data.sampling != "megatron":
        fix = "set data.sampling=megatron, or leave it out"
        return [
            Problem(f"data.megatron.{key}", "has no effect with data.sampling=plan", fix, value)
            for key, value in data.megatron.model_dump(exclude_defaults=True).items()
        ]
    wanted = {
        "data.document_mask": data.document_mask or None,
        "data.mask_document_ends": data.mask_document_ends or None,
        "sessions.weights": next((session.name for session in config.sessions if session.weights is not None), None),
    }
    problems = [
        Problem(where, "can't go with data.sampling=megatron", "set data.sampling=plan, or leave it out", value)
        for where, value in wanted.items()
        if value is not None
    ]
    for source in data.train:
        where = f"data.train[{source.name}].weight"
        if isinstance(source.weight, Ramp):
            rule = "is a ramp, which data.sampling=megatron does not know"
            problems.append(Problem(where, rule, "give a number, or set data.sampling=plan"))
        elif source.weight == 0:
            problems.append(Problem(where, "must be above 0 with data.sampling=megatron", "leave the source out", 0))
    return problems


def _time_limit(config: Config) -> list[Problem]:
    limit, before = config.resilience.time_limit_seconds, config.resilience.exit_before_seconds
    if limit is None or limit > before:
        return []
    rule = f"must be above resilience.exit_before_seconds ({before:g}), or every attempt leaves after its first step"
    fix = "raise it, or lower resilience.exit_before_seconds"
    return [Problem("resilience.time_limit_seconds", rule, fix, limit)]


def backend_problems(config: Config, backend: str) -> list[Problem]:
    """What `backend` (te or torch) can't do for this recipe, wherever it runs."""
    p, fp8 = config.parallel, config.precision.fp8
    problems = []
    if backend == "torch":
        wanted = {
            "parallel.tp_comm_overlap": p.tp_comm_overlap,
            "kernels.rope_fusion": config.kernels.rope_fusion,
            "kernels.cuda_graphs": config.kernels.cuda_graphs,
            "precision.fp8.param_gather": fp8 is not None and fp8.param_gather,
        }
        for name in [name for name, there in wanted.items() if there]:
            fix = f"set {name}=false, or run where CUDA and Transformer Engine are present"
            problems.append(Problem(name, "needs the te backend, and the backend is torch", fix, True))
        if fp8 is not None and fp8.recipe in ("blockwise", "mxfp8"):
            fix = "use delayed or tensorwise, or run where CUDA and Transformer Engine are present"
            rule = "needs the te backend, and the backend is torch"
            problems.append(Problem("precision.fp8.recipe", rule, fix, fp8.recipe))
        return problems
    if config.data.document_mask:
        sizes = {
            "parallel.cp_size": p.cp_size,
            "train.micro_batch_size": config.train.micro_batch_size,
            "validation.micro_batch_size": config.validation.micro_batch_size or 1,
        }
        for name, size in [(name, size) for name, size in sizes.items() if size > 1]:
            fix = "set it to 1, or model.backend=torch, or data.document_mask=false"
            problems.append(Problem(name, "must be 1 with data.document_mask on the te backend", fix, size))
    if fp8 is not None and config.precision.dtype == "fp32":
        problems.append(
            Problem("precision.dtype", "must be bf16 for precision.fp8 on the te backend", "set it to bf16", "fp32")
        )
    if fp8 is not None and fp8.recipe == "delayed" and fp8.first_last_layers_bf16:
        fix = "use precision.fp8.recipe=tensorwise, or model.backend=torch"
        rule = "can't go with delayed scaling on the te backend (amax is reduced for all layers at once)"
        problems.append(Problem("precision.fp8.first_last_layers_bf16", rule, fix, True))
    return problems


def _divides(rules: list[tuple[str, int, int, str]]) -> list[Problem]:
    return [
        Problem(
            where,
            f"must be a multiple of {name} ({divisor})",
            f"use {_next_multiple(value, divisor)}, or change {name.split(' *')[0]}",
            value,
        )
        for where, value, divisor, name in rules
        if value % divisor
    ]


def _batch(config: Config, world_size: int) -> list[Problem]:
    """The token budget, the ramp of the batch size, and what ranks and micro batches make of each of its sizes."""
    t, dp_size = config.train, data_parallel_size(config, world_size)
    problems = _rampup(t)
    if dp_size and not problems:  # sizes on a wrong ramp, or with a wrong layout, say nothing
        problems = _batch_sizes(t, config.parallel, dp_size)
    if t.tokens == 0:
        problems.append(Problem("train.tokens", "must be above 0", "give the token budget, as 130B", 0))
    return problems


def _rampup(t: TrainConfig) -> list[Problem]:
    problems, rampup = [], t.batch_rampup
    if rampup is not None:
        if rampup.start_size > t.global_batch_size:
            problems.append(
                Problem(
                    "train.batch_rampup.start_size",
                    f"must be at most train.global_batch_size ({t.global_batch_size})",
                    "lower it",
                    rampup.start_size,
                )
            )
        elif (t.global_batch_size - rampup.start_size) % rampup.increment:
            problems.append(
                Problem(
                    "train.batch_rampup.increment",
                    f"must divide the growth from {rampup.start_size} to {t.global_batch_size}",
                    "use a divisor of the difference",
                    rampup.increment,
                )
            )
    return problems


def _batch_sizes(t: TrainConfig, p: ParallelConfig, dp_size: int) -> list[Problem]:
    problems, per_pass = [], t.micro_batch_size * dp_size
    for size in batch_sizes(t.global_batch_size, t.batch_rampup):
        where = "train.global_batch_size" if size == t.global_batch_size else "train.batch_rampup (a size on the way)"
        if size % per_pass:
            problems.append(
                Problem(
                    where,
                    f"must be a multiple of train.micro_batch_size * data-parallel size "
                    f"({t.micro_batch_size} * {dp_size} = {per_pass})",
                    f"use {_next_multiple(size, per_pass)}, or another micro batch or layout",
                    size,
                )
            )
        elif p.vpp_size > 1 and (size // per_pass) % p.pp_size:
            problems.append(
                Problem(
                    where,
                    f"gives {size // per_pass} micro batches; interleaved 1F1B needs a multiple of "
                    f"parallel.pp_size ({p.pp_size})",
                    f"use {_next_multiple(size, per_pass * p.pp_size)} sequences",
                    size,
                )
            )
    return problems


def _schedules(config: Config) -> list[tuple[str, ScheduleConfig, int]]:
    """(dotted key, schedule, tokens it is for) of the run or of each of its sessions."""
    if not config.sessions:
        return [("schedule", config.schedule, config.train.tokens)]
    return [
        (
            f"sessions.{session.name}.schedule" if session.schedule else "schedule",
            session.schedule or config.schedule,
            session.tokens,
        )
        for session in config.sessions
    ]


def _schedule(key: str, s: ScheduleConfig, tokens: int) -> list[Problem]:
    problems = []
    end = s.decay_tokens if s.decay_tokens is not None else tokens
    if s.min_lr > s.lr:
        problems.append(Problem(f"{key}.min_lr", f"must be at most {key}.lr ({s.lr})", "lower it", s.min_lr))
    if s.warmup_start_lr > s.lr:
        problems.append(
            Problem(f"{key}.warmup_start_lr", f"must be at most {key}.lr ({s.lr})", "lower it", s.warmup_start_lr)
        )
    if s.warmup_tokens > end:
        problems.append(
            Problem(
                f"{key}.warmup_tokens",
                f"must be at most the decay's end, {end:,} tokens",
                "lower it",
                s.warmup_tokens,
            )
        )
    if s.style == "inverse_sqrt" and not s.warmup_tokens:
        fix = "give a warm-up, whose end the decay is reckoned from"
        problems.append(Problem(f"{key}.warmup_tokens", "must be above 0 with style=inverse_sqrt", fix, 0))
    if s.style == "wsd" and not 0 < s.wsd_decay_tokens <= max(end - s.warmup_tokens, 0):
        problems.append(
            Problem(
                f"{key}.wsd_decay_tokens",
                f"must be above 0 and at most the {max(end - s.warmup_tokens, 0):,} tokens after the warm-up",
                "a tenth of the budget is usual",
                s.wsd_decay_tokens,
            )
        )
    if s.style != "wsd" and s.wsd_decay_tokens:
        problems.append(
            Problem(
                f"{key}.wsd_decay_tokens",
                f"has no effect with schedule.style={s.style}",
                "remove it, or set schedule.style=wsd",
                s.wsd_decay_tokens,
            )
        )
    if s.style == "wsd" and s.wsd_decay_style == "exponential" and s.min_lr == 0:
        problems.append(
            Problem(f"{key}.min_lr", "must be above 0 for an exponential decay", "set it, as 1e-6", s.min_lr)
        )
    return problems


def _next_multiple(value: int, divisor: int) -> int:
    return max(-(-value // divisor), 1) * divisor

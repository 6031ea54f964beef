"""Megatron-LM's arguments as a recipe: every value that decides the training is written out, its default included.

Megatron-LM counts a run in iterations or samples, a recipe in tokens; one is turned into the other here. What an
argument becomes is one function below, by section of the recipe; `Translation` says what became of each.

A variable (`${NAME}`) that stands for a value goes into the recipe, which reads it from the environment. Where the
value has to be reckoned with, or the script does not tell it, an `Untold` takes its place: the recipe then holds
`TO_GIVE`, which no key accepts, so that it is not trained with a default that nobody asked for.
"""

from collections.abc import Callable, Sequence

from megatron_sky.migrate import flags, vocabulary
from megatron_sky.migrate.arguments import (
    Arguments,
    Untold,
    known,
    number_or_variable,
    split_launcher,
)
from megatron_sky.migrate.batch import (
    NOT_THREE,
    RAMP,
    RAMPS_NO_MORE,
    STEPS,
    Batch,
    budget,
    decay_tokens,
    even_steps,
    span,
)
from megatron_sky.migrate.order import put_order
from megatron_sky.migrate.sources import SPLIT_LISTS, sources_of, training_list, validation_list
from megatron_sky.migrate.translation import TO_GIVE, Translation, Writer

_LAUNCHER = ("nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port", "rdzv_id", "rdzv_backend")
_LISTS = ("data-path", "train-data-path", "valid-data-path", "rampup-batch-size", "profile-ranks")


def translate(words: Sequence[str], *, same_order: bool = False, megatron: str | None = None) -> Translation:
    """The recipe that trains what `words`, a launch command or its arguments, would train.

    `same_order`: on the same samples in the same order. `megatron`: the version of megatron-core that the command has,
    as 0.16.1, where what its arguments mean depends on it.
    """
    launcher, arguments = split_launcher(words)
    args, done = Arguments(arguments), Translation()
    if megatron is not None and vocabulary.version_of(megatron) >= RAMPS_NO_MORE and RAMP in args.given:
        given = " ".join([f"--{RAMP}", *args.given.pop(RAMP)])
        done.no_effect.append(f"{given}: megatron-core {megatron} passes over it; see --{STEPS}")
    writer = Writer(args, done)
    put, batch = writer.put, Batch(args)
    _model(args, put, done)
    vocabulary.put_size(args, writer, megatron)
    _parallel(args, put)
    _precision(args, put)
    _optimizer(args, put)
    _train(args, put, done, batch)
    _schedule(args, put, done, batch)
    _data(args, put, done, batch)
    if same_order:
        put_order(args, writer, done, batch)
    _run(args, put, done, batch)
    done.nodes, done.gpus_per_node = (number_or_variable(launcher, name) for name in ("nnodes", "nproc_per_node"))
    _sort_the_rest(args, done)
    done.open_words = [
        f"{word} {where} is not known: if it holds arguments, the recipe lacks them"
        for word, where in args.open_words()
        if where not in [f"after --{name}" for name in _LISTS]
    ]
    return done


Put = Callable[..., None]


def _model(args: Arguments, put: Put, done: Translation) -> None:
    heads, swiglu = args.asked("num-attention-heads", int), args.has("swiglu")
    for key, name in (("num_layers", "num-layers"), ("hidden_size", "hidden-size"), ("seq_length", "seq-length")):
        put(f"model.{key}", args.asked(name, int), name)
    put("model.num_attention_heads", heads, "num-attention-heads")
    inner = args.one("ffn-hidden-size", int, lambda: _ffn_hidden_size(args.number("hidden-size", int), swiglu))
    put("model.ffn_hidden_size", inner, "ffn-hidden-size")
    grouped = args.has("group-query-attention")
    groups = args.one("num-query-groups", int, 1) if grouped else heads
    put("model.num_query_groups", groups, "group-query-attention", "num-query-groups")
    if args.has("kv-channels"):
        put("model.kv_channels", args.one("kv-channels", int), "kv-channels")
    _positions(args, put, done)
    put("model.normalization", args.one("normalization", str.lower, "layernorm"), "normalization")
    epsilon = args.one("norm-epsilon", float, args.one("layernorm-epsilon", float, 1e-5))
    put("model.norm_epsilon", epsilon, "norm-epsilon", "layernorm-epsilon")
    by_tanh = not args.has("no-bias-gelu-fusion", "disable-bias-linear")  # only the fused GELU is
    gelu = "gelu" if by_tanh else "gelu_exact"
    sources = () if swiglu else ("no-bias-gelu-fusion", "disable-bias-linear")
    put("model.activation", "swiglu" if swiglu else gelu, "swiglu", *sources)
    put("model.add_bias_linear", not args.has("disable-bias-linear"), "disable-bias-linear")
    untied = args.has("untie-embeddings-and-output-weights")
    put("model.tie_embeddings", not untied, "untie-embeddings-and-output-weights")
    put("model.hidden_dropout", args.one("hidden-dropout", float, 0.1), "hidden-dropout")
    put("model.attention_dropout", args.one("attention-dropout", float, 0.1), "attention-dropout")
    put("model.init_std", args.one("init-method-std", float, 0.02), "init-method-std")
    multiple, tensor = ("make-vocab-size-divisible-by", int, 128), ("tensor-model-parallel-size", int, 1)
    alone = args.one(*tensor) == 1
    rows = args.one(*multiple) if alone else lambda: args.number(*multiple) * args.number(*tensor)
    put("model.vocab_multiple", rows, multiple[0], tensor[0])


def _ffn_hidden_size(hidden_size: int, swiglu: bool) -> int:
    return int(4 * hidden_size * 2 / 3) // 64 * 64 if swiglu else 4 * hidden_size


def _positions(args: Arguments, put: Put, done: Translation) -> None:
    names = ("position-embedding-type", "use-rotary-position-embeddings")
    kind = "rope" if args.has(names[1]) else args.one(names[0], str.lower, "learned_absolute")
    if isinstance(kind, str) and "${" not in kind and kind not in ("rope", "learned_absolute"):
        done.no_counterpart.append(f"--position-embedding-type {kind}: another model")
        return
    put("model.position_embedding", kind, *names)
    if kind == "rope" and args.has("no-position-embedding"):
        done.no_effect.append("--no-position-embedding: rotary positions need none")
    rows = args.one("max-position-embeddings", int)
    if kind == "learned_absolute" and rows not in (None, args.one("seq-length", int)):
        done.no_counterpart.append(f"--max-position-embeddings {rows}: another model, as many rows as seq_length")
    else:
        args.used.discard("max-position-embeddings")  # told as without effect
    if kind == "learned_absolute":
        return
    put("model.rotary_base", args.one("rotary-base", float, 10_000.0), "rotary-base")
    if args.one("rotary-percent", float, 1.0) != 1.0:
        done.no_counterpart.append(
            f"--rotary-percent {args.one('rotary-percent')}: another model unless it is 1.0, all of a head rotates"
        )
    elif args.has("rotary-percent"):
        done.no_effect.append(f"--rotary-percent {args.one('rotary-percent')}: all of a head rotates")
    if args.has("use-rope-scaling"):
        put("model.rope_scaling.kind", "llama3", "use-rope-scaling")
        put("model.rope_scaling.factor", args.one("rope-scaling-factor", float, 8.0), "rope-scaling-factor")
    elif args.has("rotary-seq-len-interpolation-factor"):
        name = "rotary-seq-len-interpolation-factor"
        put("model.rope_scaling.kind", "linear", name)
        put("model.rope_scaling.factor", args.one(name, float), name)


def _parallel(args: Arguments, put: Put) -> None:
    for key, name in (
        ("tp_size", "tensor-model-parallel-size"),
        ("pp_size", "pipeline-model-parallel-size"),
        ("cp_size", "context-parallel-size"),
    ):
        if args.has(name):
            put(f"parallel.{key}", args.one(name, int), name)
    if args.has("num-virtual-stages-per-pipeline-rank"):
        stages = args.one("num-virtual-stages-per-pipeline-rank", int)
        put("parallel.vpp_size", stages, "num-virtual-stages-per-pipeline-rank")
    elif args.has("num-layers-per-virtual-pipeline-stage"):
        put("parallel.vpp_size", lambda: _chunks(args), "num-layers-per-virtual-pipeline-stage")
    if args.has("sequence-parallel"):  # has no effect at TP1, there as here; here it is refused
        name = "tensor-model-parallel-size"
        put("parallel.sequence_parallel", lambda: args.number(name, int, 1) > 1, "sequence-parallel")
    put("parallel.distributed_optimizer", args.has("use-distributed-optimizer"), "use-distributed-optimizer")
    for key, name in (
        ("overlap_grad_reduce", "overlap-grad-reduce"),
        ("overlap_param_gather", "overlap-param-gather"),
        ("tp_comm_overlap", "tp-comm-overlap"),
    ):
        if args.has(name):
            put(f"parallel.{key}", True, name)
    if args.has("no-overlap-p2p-communication"):
        put("parallel.overlap_p2p", False, "no-overlap-p2p-communication")
    if args.has("ddp-bucket-size"):
        put("parallel.grad_bucket_size", args.one("ddp-bucket-size", int), "ddp-bucket-size")


def _chunks(args: Arguments) -> int:
    """Model chunks of a pipeline stage, by the layers of a chunk."""
    stages, layers = args.number("pipeline-model-parallel-size", int, 1), args.number("num-layers", int)
    each = args.number("num-layers-per-virtual-pipeline-stage", int)
    if 0 in (stages, each):
        raise Untold(f"{layers} layers in {stages} stages, {each} layers a chunk")
    return layers // stages // each


def _precision(args: Arguments, put: Put) -> None:
    dtype = "bf16" if args.has("bf16") else "fp16" if args.has("fp16") else "fp32"
    put("precision.dtype", dtype, "bf16", "fp16")
    in_fp32 = args.has("accumulate-allreduce-grads-in-fp32") or dtype == "bf16"
    in_fp32 = in_fp32 and not args.has("grad-reduce-in-bf16")
    put("precision.grad_reduce_in_fp32", in_fp32, "accumulate-allreduce-grads-in-fp32", "grad-reduce-in-bf16")
    if dtype == "fp16":
        put("precision.initial_loss_scale", args.one("initial-loss-scale", float, 2.0**32), "initial-loss-scale")
    if args.has("fp8-format", "fp8-hybrid", "fp8-e4m3"):
        form = "hybrid" if args.has("fp8-hybrid") else "e4m3" if args.has("fp8-e4m3") else args.one("fp8-format")
        put("precision.fp8.format", form, "fp8-format", "fp8-hybrid", "fp8-e4m3")
        put("precision.fp8.recipe", args.one("fp8-recipe", str, "delayed"), "fp8-recipe")
        put("precision.fp8.amax_history_len", args.one("fp8-amax-history-len", int, 1), "fp8-amax-history-len")
        algorithm = args.one("fp8-amax-compute-algo", str, "most_recent")
        put("precision.fp8.amax_compute_algo", algorithm, "fp8-amax-compute-algo")
        if args.has("first-last-layers-bf16"):
            put("precision.fp8.first_last_layers_bf16", True, "first-last-layers-bf16")
        if args.has("fp8-param-gather"):
            put("precision.fp8.param_gather", True, "fp8-param-gather")
    fused = args.has("cross-entropy-loss-fusion")
    put("kernels.cross_entropy_fusion", fused, "cross-entropy-loss-fusion")
    if args.has("enable-cuda-graph"):
        put("kernels.cuda_graphs", True, "enable-cuda-graph")
    if args.has("deterministic-mode"):
        put("kernels.deterministic", True, "deterministic-mode")


def _optimizer(args: Arguments, put: Put) -> None:
    defaults = {"weight-decay": 0.01, "adam-beta1": 0.9, "adam-beta2": 0.999, "adam-eps": 1e-8, "clip-grad": 1.0}
    if args.one("optimizer", str, "adam") != "adam":
        args.used.discard("optimizer")  # told as without counterpart
    for name, default in defaults.items():
        put(f"optimizer.{name.replace('-', '_')}", args.one(name, float, default), name)


def _train(args: Arguments, put: Put, done: Translation, batch: Batch) -> None:
    unknown = Untold("--global-batch-size is not given (micro batch x data-parallel size)")
    last = (lambda: batch.size) if args.has(STEPS) else unknown
    put("train.global_batch_size", args.one("global-batch-size", int, last), "global-batch-size")
    put("train.micro_batch_size", args.one("micro-batch-size", int, 1), "micro-batch-size")
    seed = args.one("seed", int, 1234)
    put("train.seed", seed, "seed")
    put("data.seed", seed, "seed")
    if args.has("recompute-activations"):
        put("train.recompute", "selective", "recompute-activations")
    elif args.has("recompute-granularity"):
        put("train.recompute", args.one("recompute-granularity"), "recompute-granularity")
    if args.has("recompute-num-layers"):
        put("train.recompute_num_layers", args.one("recompute-num-layers", int), "recompute-num-layers")
    _rampup(args, put, done, batch)
    source = "train-samples" if args.has("train-samples") else "train-iters"
    put("train.tokens", lambda: budget(args, batch), source)


def _rampup(args: Arguments, put: Put, done: Translation, batch: Batch) -> None:
    """The batch's growth, written where the recipe's even stages can say it."""
    if args.has(RAMP):
        values = args.several(RAMP, int)
        if len(values) != 3:
            put("train.batch_rampup", NOT_THREE, RAMP)
            return
        put("train.batch_rampup.start_size", values[0], RAMP)
        put("train.batch_rampup.increment", values[1], RAMP)
        put("train.batch_rampup.tokens", lambda: known(RAMP, values[2]) * batch.seq_length, RAMP)
    elif args.has(STEPS):
        try:
            stages = even_steps(args, batch)
        except Untold as untold:
            put("train.batch_rampup", untold, STEPS)
            return
        if stages is None:
            done.no_counterpart.append(f"--{STEPS}: the batch grows in equal steps after equal counts of tokens")
            return
        (_, start), (_, second) = stages[:2]
        rampup = {"start_size": start, "increment": second - start, "tokens": stages[-1][0]}
        put("train.batch_rampup", rampup, STEPS)


def _schedule(args: Arguments, put: Put, done: Translation, batch: Batch) -> None:
    style = args.one("lr-decay-style", str.lower, "linear")
    if isinstance(style, str) and "${" not in style:
        style = style.replace("inverse-square-root", "inverse_sqrt")
        if style not in ("constant", "linear", "cosine", "wsd", "inverse_sqrt"):
            done.no_counterpart.append(
                f"--lr-decay-style {style}: the styles are constant, linear, cosine, wsd, inverse-square-root"
            )
            style = "cosine"
    put("schedule.style", style, "lr-decay-style")
    put("schedule.lr", args.asked("lr", float), "lr")
    put("schedule.min_lr", args.one("min-lr", float, 0.0), "min-lr")
    if args.has("lr-warmup-init"):
        put("schedule.warmup_start_lr", args.one("lr-warmup-init", float), "lr-warmup-init")
    counted = ("lr-decay-iters", "lr-decay-samples")
    grows = args.has("train-iters") and args.has(RAMP, STEPS)  # the decay takes every iteration for a full batch
    if args.has(*counted) or grows:
        put("schedule.decay_tokens", lambda: decay_tokens(args, batch), *counted, *(["train-iters"] if grows else []))
    fraction, counted = "lr-warmup-fraction", ("lr-warmup-iters", "lr-warmup-samples")
    if args.has(fraction):
        put("schedule.warmup_tokens", lambda: round(args.number(fraction, float) * decay_tokens(args, batch)), fraction)
    else:
        put("schedule.warmup_tokens", (lambda: span(args, batch, *counted)) if args.has(*counted) else 0, *counted)
    if style == "inverse_sqrt" and done.recipe["schedule"]["warmup_tokens"] == 0:
        put("schedule.warmup_tokens", lambda: batch.seq_length, "lr-decay-style")  # Megatron-LM's counts from 1 sample
        put("schedule.warmup_start_lr", args.asked("lr", float), "lr-decay-style")
    if style == "wsd" or "${" in str(style):
        counted = ("lr-wsd-decay-iters", "lr-wsd-decay-samples")
        if style == "wsd" or args.has(*counted):
            put("schedule.wsd_decay_tokens", lambda: span(args, batch, *counted), *counted)
        names = {"minus_sqrt": "sqrt", "exponential": "halving"}
        shape = args.one("lr-wsd-decay-style", lambda text: names.get(text, text), "halving")
        put("schedule.wsd_decay_style", shape, "lr-wsd-decay-style")


def _data(args: Arguments, put: Put, done: Translation, batch: Batch) -> None:
    put("data.train", lambda: _training_sources(args), *_TRAINING_LISTS)
    if any(source["weight"] == TO_GIVE for source in done.recipe["data"]["train"] if isinstance(source, dict)):
        done.to_give.append("data.train: weights; without any, Megatron-LM's are the numbers of the sources' samples")
    if args.has("valid-data-path", SPLIT_LISTS):
        put("validation.sets", lambda: _validation_sets(args), "valid-data-path", SPLIT_LISTS)
    if args.has("tokenizer-model"):
        put("tokenizer.path", args.one("tokenizer-model"), "tokenizer-model")
    if args.has("num-workers"):
        put("data.num_workers", args.one("num-workers", int), "num-workers")
    if args.has("eod-mask-loss"):
        put("data.mask_document_ends", True, "eod-mask-loss")
    if {"reset-position-ids", "reset-attention-mask"} <= args.given.keys():
        put("data.document_mask", True, "reset-position-ids", "reset-attention-mask")
    if args.has("eval-interval"):
        put("validation.interval", args.one("eval-interval", _steps), "eval-interval")
    if args.has("eval-iters") and args.one("eval-iters", int) != 0:
        put("validation.max_sequences", lambda: args.number("eval-iters", int) * batch.size, "eval-iters")


def _steps(text: str) -> str:
    """An interval; a bare count, as of a variable, is one of steps too."""
    return f"{int(text)} steps"


_TRAINING_LISTS = ("train-data-path", "data-path", "data-args-path", SPLIT_LISTS)


def _training_sources(args: Arguments) -> list[dict]:
    given = training_list(args)
    if given is None:
        raise Untold("the sources, as {name: web, path: tokens/web, weight: 1.0}")
    return sources_of(*given)


def _validation_sets(args: Arguments) -> list[dict]:
    given = validation_list(args)
    sets = [] if given is None else sources_of(*given)
    return [{"name": source["name"], "path": source["path"]} for source in sets]


def _run(args: Arguments, put: Put, done: Translation, batch: Batch) -> None:
    if args.has("save"):
        put("train.run_dir", args.one("save"), "save")
    else:
        done.recipe["train"]["run_dir"] = "runs/from_megatron"
        done.to_give.append("train.run_dir: --save is not given; the recipe says runs/from_megatron")
    if args.has("save-interval"):
        put("checkpoint.interval", args.one("save-interval", _steps), "save-interval")
    retained = "save-retain-interval"
    if args.has(retained):
        put("checkpoint.keep_every_tokens", lambda: batch.tokens(args.number(retained, int)), retained)
    if args.has("most-recent-k") and args.one("most-recent-k", int) != -1:
        put("checkpoint.keep_last", args.one("most-recent-k", int), "most-recent-k")
    if args.has("no-save-optim"):
        put("checkpoint.save_optimizer", False, "no-save-optim")
    _load(args, done)
    put("monitor.log_interval", args.one("log-interval", int, 100), "log-interval")
    if args.has("wandb-project"):
        put("monitor.wandb.project", args.one("wandb-project"), "wandb-project")
        if args.has("wandb-exp-name"):
            put("monitor.wandb.name", args.one("wandb-exp-name"), "wandb-exp-name")
    for key, name in (
        ("step_timeout_seconds", "distributed-timeout-minutes"),
        ("time_limit_seconds", "exit-duration-in-mins"),
    ):
        if args.has(name):
            put(f"resilience.{key}", lambda name=name: args.number(name, float) * 60, name)
    if args.has("exit-duration-in-mins"):
        put("resilience.exit_before_seconds", 0, "exit-duration-in-mins")
    if args.has("profile"):
        _profile(args, put)


def _profile(args: Arguments, put: Put) -> None:
    start, end = ("profile-step-start", int, 10), ("profile-step-end", int, 12)
    first = args.one(*start)
    put("profile.first_step", max(first, 1) if isinstance(first, int) else first, "profile", start[0])
    put("profile.num_steps", lambda: max(args.number(*end) - args.number(*start), 1), end[0], start[0])
    if args.has("profile-ranks"):
        ranks = args.several("profile-ranks", int) or [args.one("profile-ranks")]
        put("profile.ranks", next((rank for rank in ranks if isinstance(rank, Untold)), ranks), "profile-ranks")


def _load(args: Arguments, done: Translation) -> None:
    """A run folder is gone on with by itself; weights of another run come in through a conversion."""
    load, save = args.one("load"), args.one("save")
    starts_anew = args.has("finetune") or load != save
    source = args.one("pretrained-checkpoint") or (load if starts_anew else None)
    if source is None:
        if args.has("finetune"):
            done.no_effect.append("--finetune: is of --load alone")
        if load:
            done.no_effect.append(f"--load {load}: a run folder is gone on with from its last whole checkpoint")
        return
    flag = "--pretrained-checkpoint" if args.has("pretrained-checkpoint") else "--load"
    done.no_counterpart.append(
        f"{flag} {source}: its weights come in by `megatron-sky convert from-megatron {source} OUT` and "
        f"checkpoint.init_from: OUT; optimizer state does not"
    )


def _sort_the_rest(args: Arguments, done: Translation) -> None:
    for name, values in args.given.items():
        if name in args.used or name.replace("-", "_") in _LAUNCHER:
            continue
        shown = " ".join([f"--{name}", *values[:4]])
        without = None if name in flags.NO_EFFECT else flags.find(flags.NO_COUNTERPART, name)
        needless = flags.find(flags.NO_EFFECT, name)
        if without is not None:
            done.no_counterpart.append(f"{shown}: {without}")
        elif needless is not None:
            done.no_effect.append(f"{shown}: {needless}")
        else:
            done.no_counterpart.append(f"{shown}: unknown")

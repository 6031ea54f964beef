"""Megatron-LM's arguments as a recipe: every value that decides the training is written out, its default included.

Megatron-LM counts a run in iterations or samples, a recipe in tokens; one is turned into the other here. What an
argument becomes is one function below, by section of the recipe; `Translation` says what became of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath

from megatron_sky.migrate import flags
from megatron_sky.migrate.shell import split_words

_LAUNCHER = ("nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port", "rdzv_id", "rdzv_backend")


@dataclass
class Translation:
    """A recipe as plain mappings, and what became of each argument."""

    recipe: dict = field(default_factory=dict)
    mapped: list[str] = field(default_factory=list)
    no_effect: list[str] = field(default_factory=list)
    no_counterpart: list[str] = field(default_factory=list)
    to_give: list[str] = field(default_factory=list)
    """What the recipe still needs, that arguments don't tell."""
    nodes: int | None = None
    gpus_per_node: int | None = None


@dataclass
class _Batch:
    """The batch as Megatron-LM counts by it."""

    size: int
    seq_length: int

    def tokens(self, iterations: int) -> int:
        return iterations * self.size * self.seq_length


class Arguments:
    """Flags with their values; each that is asked for is noted, so that nothing stays untold."""

    def __init__(self, words: Sequence[str]):
        self.given = parse(words)
        self.used: set[str] = set()

    def has(self, *names: str) -> bool:
        """Whether one of these flags is given."""
        return any([self.values(name) is not None for name in names])

    def values(self, name: str) -> list[str] | None:
        if name in self.given:
            self.used.add(name)
        return self.given.get(name)

    def one(self, name: str, kind: Callable = str, default=None):
        """The flag's value; `default` where it is not given, or has no value of that kind."""
        values = self.values(name)
        if not values:
            return default
        try:
            return kind(values[0])
        except ValueError:
            return default if kind is not str else values[0]


def parse(words: Sequence[str]) -> dict[str, list[str]]:
    """`--name value...` and `--name=value`; the last of a name counts, words before the first are dropped."""
    given: dict[str, list[str]] = {}
    name = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            given[name] = split_words(value) if equals else []
        elif name is not None:
            given[name] += split_words(word) or [word]
    return given


def translate(words: Sequence[str]) -> Translation:
    """The recipe that trains what `words`, a launch command or its arguments, would train."""
    launcher, arguments = _split_launcher(words)
    args, done = Arguments(arguments), Translation()
    put = _Writer(args, done).put
    batch = _Batch(args.one("global-batch-size", int, 0), args.one("seq-length", int, 0))
    _model(args, put, done)
    _parallel(args, put)
    _precision(args, put)
    _optimizer(args, put)
    _train(args, put, done, batch)
    _schedule(args, put, done, batch)
    _data(args, put, done, batch)
    _run(args, put, done, batch)
    done.nodes, done.gpus_per_node = (_number(launcher, name) for name in ("nnodes", "nproc_per_node"))
    _sort_the_rest(args, done)
    return done


class _Writer:
    def __init__(self, args: Arguments, done: Translation):
        self.args, self.done = args, done

    def put(self, key: str, value: object, *names: str) -> None:
        """Sets a key of the recipe, told as coming from the flags `names` (those given of them)."""
        *sections, leaf = key.split(".")
        here = self.done.recipe
        for section in sections:
            here = here.setdefault(section, {})
        here[leaf] = value
        given = [" ".join([f"--{name}", *self.args.given[name][:4]]) for name in names if self.args.has(name)]
        source = ", ".join(given) or "Megatron-LM's default"
        shown = f"{len(value)} of them" if isinstance(value, list | tuple) and len(str(value)) > 60 else value
        self.done.mapped.append(f"{source} -> {key}: {shown}")


Put = Callable[..., None]


def _model(args: Arguments, put: Put, done: Translation) -> None:
    hidden, heads = args.one("hidden-size", int, 0), args.one("num-attention-heads", int, 0)
    swiglu = args.has("swiglu")
    for key, name in (("num_layers", "num-layers"), ("hidden_size", "hidden-size"), ("seq_length", "seq-length")):
        if args.has(name):
            put(f"model.{key}", args.one(name, int), name)
        else:
            done.to_give.append(f"model.{key}: --{name} is not given")
    put("model.num_attention_heads", heads, "num-attention-heads")
    plain = int(4 * hidden * 2 / 3) // 64 * 64 if swiglu else 4 * hidden
    put("model.ffn_hidden_size", args.one("ffn-hidden-size", int, plain), "ffn-hidden-size")
    grouped = args.has("group-query-attention")
    groups = args.one("num-query-groups", int, 1) if grouped else heads
    put("model.num_query_groups", groups, "group-query-attention", "num-query-groups")
    if args.has("kv-channels"):
        put("model.kv_channels", args.one("kv-channels", int), "kv-channels")
    _positions(args, put, done)
    normalization = args.one("normalization", str, "LayerNorm").lower()
    put("model.normalization", normalization, "normalization")
    epsilon = args.one("norm-epsilon", float, args.one("layernorm-epsilon", float, 1e-5))
    put("model.norm_epsilon", epsilon, "norm-epsilon", "layernorm-epsilon")
    put("model.activation", "swiglu" if swiglu else "gelu", "swiglu")
    put("model.add_bias_linear", not args.has("disable-bias-linear"), "disable-bias-linear")
    untied = args.has("untie-embeddings-and-output-weights")
    put("model.tie_embeddings", not untied, "untie-embeddings-and-output-weights")
    put("model.hidden_dropout", args.one("hidden-dropout", float, 0.1), "hidden-dropout")
    put("model.attention_dropout", args.one("attention-dropout", float, 0.1), "attention-dropout")
    put("model.init_std", args.one("init-method-std", float, 0.02), "init-method-std")
    multiple = args.one("make-vocab-size-divisible-by", int, 128) * args.one("tensor-model-parallel-size", int, 1)
    put("model.vocab_multiple", multiple, "make-vocab-size-divisible-by", "tensor-model-parallel-size")
    if args.has("vocab-size"):
        put("model.vocab_size", args.one("vocab-size", int), "vocab-size")
    else:
        done.to_give.append("model.vocab_size: the tokenizer's number of tokens, without padding")


def _positions(args: Arguments, put: Put, done: Translation) -> None:
    names = ("position-embedding-type", "use-rotary-position-embeddings")
    kind = "rope" if args.has(names[1]) else args.one(names[0], str, "learned_absolute")
    if kind not in ("rope", "learned_absolute"):
        done.no_counterpart.append(f"--position-embedding-type {kind}: another model")
        return
    put("model.position_embedding", kind, *names)
    if kind != "rope":
        return
    put("model.rotary_base", args.one("rotary-base", float, 10_000.0), "rotary-base")
    if args.one("rotary-percent", float, 1.0) != 1.0:
        done.no_counterpart.append(
            f"--rotary-percent {args.one('rotary-percent')}: another model, all of a head rotates"
        )
    if args.has("use-rope-scaling"):
        scaling = {"kind": "llama3", "factor": args.one("rope-scaling-factor", float, 8.0)}
        put("model.rope_scaling", scaling, "use-rope-scaling", "rope-scaling-factor")
    elif args.has("rotary-seq-len-interpolation-factor"):
        factor = args.one("rotary-seq-len-interpolation-factor", float)
        put("model.rope_scaling", {"kind": "linear", "factor": factor}, "rotary-seq-len-interpolation-factor")


def _parallel(args: Arguments, put: Put) -> None:
    pipeline = args.one("pipeline-model-parallel-size", int, 1)
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
        layers = args.one("num-layers-per-virtual-pipeline-stage", int, 1)
        chunks = args.one("num-layers", int, 0) // pipeline // layers
        put("parallel.vpp_size", chunks, "num-layers-per-virtual-pipeline-stage")
    if args.has("sequence-parallel"):  # has no effect at TP1, there as here; here it is refused
        wide = args.one("tensor-model-parallel-size", int, 1) > 1
        put("parallel.sequence_parallel", wide, "sequence-parallel")
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


def _train(args: Arguments, put: Put, done: Translation, batch: _Batch) -> None:
    if batch.size:
        put("train.global_batch_size", batch.size, "global-batch-size")
    else:
        done.to_give.append(
            "train.global_batch_size: --global-batch-size is not given (micro batch x data-parallel size)"
        )
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
    stages = _rampup(args, put, done, batch)
    if args.has("train-samples"):
        put("train.tokens", args.one("train-samples", int) * batch.seq_length, "train-samples")
    elif args.has("train-iters"):
        put("train.tokens", _tokens_of(args.one("train-iters", int), stages, batch), "train-iters")
    else:
        done.to_give.append("train.tokens: neither --train-iters nor --train-samples is given")


Stage = tuple[int, int]  # (consumed tokens from which it holds, global batch size)


def _rampup(args: Arguments, put: Put, done: Translation, batch: _Batch) -> list[Stage]:
    """The batch's growth as stages; written where the recipe's even stages can say it."""
    whole = [(0, batch.size)]
    ramp, schedule = args.values("rampup-batch-size"), args.values("step-batch-size-schedule")
    if ramp and len(ramp) == 3:
        start, increment, samples = map(int, ramp)
        rampup = {"start_size": start, "increment": increment, "tokens": samples * batch.seq_length}
        put("train.batch_rampup", rampup, "rampup-batch-size")
        number = max((batch.size - start) // increment, 1)
        growth = [(rampup["tokens"] * i // number, start + increment * i) for i in range(number)]
        return [*growth, (rampup["tokens"], batch.size)]
    if not schedule:
        return whole
    stages = [(_count(tokens), int(size)) for tokens, _, size in (each.partition(":") for each in schedule)]
    times = {after[0] - before[0] for before, after in pairwise(stages)}
    growths = {after[1] - before[1] for before, after in pairwise(stages)}
    if len(times) == len(growths) == 1 and stages[-1][1] == batch.size:
        rampup = {"start_size": stages[0][1], "increment": growths.pop(), "tokens": stages[-1][0]}
        put("train.batch_rampup", rampup, "step-batch-size-schedule")
        return stages
    done.no_counterpart.append(
        "--step-batch-size-schedule: the batch grows in equal steps after equal counts of tokens"
    )
    return whole


def _tokens_of(iterations: int, stages: list[Stage], batch: _Batch) -> int:
    """Tokens that `iterations` steps consume while the batch grows through `stages`."""
    tokens = 0
    for (_, size), (end, _) in pairwise(stages):
        steps = min(max(-(-(end - tokens) // (size * batch.seq_length)), 0), iterations)
        tokens, iterations = tokens + steps * size * batch.seq_length, iterations - steps
    return tokens + batch.tokens(iterations)


def _count(text: str) -> int:
    suffixes = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    scale = suffixes.get(text[-1:].upper(), 1)
    return round(float(text[:-1] if scale > 1 else text) * scale)


def _schedule(args: Arguments, put: Put, done: Translation, batch: _Batch) -> None:
    style = args.one("lr-decay-style", str, "linear").lower()
    if style not in ("constant", "linear", "cosine", "wsd"):
        done.no_counterpart.append(f"--lr-decay-style {style}: the styles are constant, linear, cosine, wsd")
        style = "cosine"
    put("schedule.style", style, "lr-decay-style")
    if args.has("lr"):
        put("schedule.lr", args.one("lr", float), "lr")
    else:
        done.to_give.append("schedule.lr: --lr is not given")
    put("schedule.min_lr", args.one("min-lr", float, 0.0), "min-lr")
    if args.has("lr-warmup-init"):
        put("schedule.warmup_start_lr", args.one("lr-warmup-init", float), "lr-warmup-init")
    decay = _span(args, batch, "lr-decay")
    total = done.recipe.get("train", {}).get("tokens", 0)
    if decay is not None and decay != total:
        put("schedule.decay_tokens", decay, "lr-decay-iters", "lr-decay-samples")
    warmup = _span(args, batch, "lr-warmup")
    if args.has("lr-warmup-fraction"):
        warmup = round(args.one("lr-warmup-fraction", float) * (decay or total))
    put("schedule.warmup_tokens", warmup or 0, "lr-warmup-fraction", "lr-warmup-iters", "lr-warmup-samples")
    if style == "wsd":
        span = _span(args, batch, "lr-wsd-decay") or 0
        put("schedule.wsd_decay_tokens", span, "lr-wsd-decay-iters", "lr-wsd-decay-samples")
        shape = args.one("lr-wsd-decay-style", str, "exponential").replace("minus_sqrt", "sqrt")
        put("schedule.wsd_decay_style", shape, "lr-wsd-decay-style")


def _span(args: Arguments, batch: _Batch, name: str) -> int | None:
    """Tokens of --NAME-iters or --NAME-samples."""
    if args.has(f"{name}-samples"):
        return args.one(f"{name}-samples", int, 0) * batch.seq_length
    if args.has(f"{name}-iters"):
        return batch.tokens(args.one(f"{name}-iters", int, 0))
    return None


def _data(args: Arguments, put: Put, done: Translation, batch: _Batch) -> None:
    name = "train-data-path" if args.has("train-data-path") else "data-path"
    sources = _blend(args.values(name) or [])
    if sources:
        put("data.train", sources, name)
    else:
        done.to_give.append("data.train: the sources, as {name: web, path: tokens/web, weight: 1.0}")
    held_out = _blend(args.values("valid-data-path") or [])
    if held_out:
        sets = [{"name": each["name"], "path": each["path"]} for each in held_out]
        put("validation.sets", sets, "valid-data-path")
    if args.has("tokenizer-model"):
        put("tokenizer.path", args.one("tokenizer-model"), "tokenizer-model")
    if args.has("num-workers"):
        put("data.num_workers", args.one("num-workers", int), "num-workers")
    if args.has("eod-mask-loss"):
        put("data.mask_document_ends", True, "eod-mask-loss")
    if {"reset-position-ids", "reset-attention-mask"} <= args.given.keys():
        put("data.document_mask", True, "reset-position-ids", "reset-attention-mask")
    if args.has("eval-interval"):
        put("validation.interval", f"{args.one('eval-interval', int)} steps", "eval-interval")
    if args.has("eval-iters") and batch.size and args.one("eval-iters", int):
        put("validation.max_sequences", args.one("eval-iters", int) * batch.size, "eval-iters")


def _blend(words: list[str]) -> list[dict]:
    """Sources of `PREFIX...` or of `WEIGHT PREFIX WEIGHT PREFIX...`, each with a name of its own."""
    weighted = len(words) % 2 == 0 and bool(words) and _is_number(words[0])
    pairs = list(zip(words[::2], words[1::2], strict=True)) if weighted else [("1.0", word) for word in words]
    names: list[str] = []
    for _, path in pairs:
        base = "".join(c if c.isalnum() or c in "_-." else "_" for c in PurePath(path).name).strip("_") or "text"
        names.append(base if base not in names else f"{base}_{len(names)}")
    return [
        {"name": name, "path": path, "weight": float(weight)} for name, (weight, path) in zip(names, pairs, strict=True)
    ]


def _run(args: Arguments, put: Put, done: Translation, batch: _Batch) -> None:
    if args.has("save"):
        put("train.run_dir", args.one("save"), "save")
    else:
        done.recipe["train"]["run_dir"] = "runs/from_megatron"
        done.to_give.append("train.run_dir: --save is not given; the recipe says runs/from_megatron")
    if args.has("save-interval"):
        put("checkpoint.interval", f"{args.one('save-interval', int)} steps", "save-interval")
    if args.has("save-retain-interval"):
        kept = batch.tokens(args.one("save-retain-interval", int, 0))
        put("checkpoint.keep_every_tokens", kept, "save-retain-interval")
    if args.one("most-recent-k", int, -1) > 0:
        put("checkpoint.keep_last", args.one("most-recent-k", int), "most-recent-k")
    if args.has("no-save-optim"):
        put("checkpoint.save_optimizer", False, "no-save-optim")
    _load(args, done)
    put("monitor.log_interval", args.one("log-interval", int, 100), "log-interval")
    if args.has("wandb-project"):
        put("monitor.wandb.project", args.one("wandb-project"), "wandb-project")
        if args.has("wandb-exp-name"):
            put("monitor.wandb.name", args.one("wandb-exp-name"), "wandb-exp-name")
    if args.has("distributed-timeout-minutes"):
        seconds = args.one("distributed-timeout-minutes", float) * 60
        put("resilience.step_timeout_seconds", seconds, "distributed-timeout-minutes")
    if args.has("exit-duration-in-mins"):
        put("resilience.time_limit_seconds", args.one("exit-duration-in-mins", float) * 60, "exit-duration-in-mins")
        put("resilience.exit_before_seconds", 0, "exit-duration-in-mins")
    if args.has("profile"):
        put("profile.first_step", max(args.one("profile-step-start", int, 10), 1), "profile", "profile-step-start")
        steps = args.one("profile-step-end", int, 12) - args.one("profile-step-start", int, 10)
        put("profile.num_steps", max(steps, 1), "profile-step-end")
        ranks = [int(rank) for rank in args.values("profile-ranks") or [] if rank.isdigit()]
        if ranks:
            put("profile.ranks", ranks, "profile-ranks")


def _load(args: Arguments, done: Translation) -> None:
    """A run folder is gone on with by itself; weights of another run come in through a conversion."""
    load, save = args.one("load"), args.one("save")
    starts_anew = args.has("finetune") or load != save
    source = args.one("pretrained-checkpoint") or (load if starts_anew else None)
    if source is None:
        if load:
            done.no_effect.append(f"--load {load}: a run folder is gone on with from its last whole checkpoint")
        return
    done.no_counterpart.append(
        f"--load {source}: its weights come in by `megatron-sky convert from-megatron {source} OUT` and "
        f"checkpoint.init_from: OUT; optimizer state does not"
    )


def _split_launcher(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """(the launcher's own flags, the arguments of the training script); all are the latter where no script is named."""
    at = next((number for number, word in enumerate(words) if word.endswith(".py")), None)
    if at is None:
        return {}, list(words)
    launcher = {name.replace("-", "_"): value for name, value in parse(words[:at]).items()}
    return launcher, list(words[at + 1 :])


def _sort_the_rest(args: Arguments, done: Translation) -> None:
    for name, values in args.given.items():
        if name in args.used or name.replace("-", "_") in _LAUNCHER:
            continue
        shown = " ".join([f"--{name}", *values[:4]])
        without = flags.find(flags.NO_COUNTERPART, name)
        needless = flags.find(flags.NO_EFFECT, name)
        if without is not None:
            done.no_counterpart.append(f"{shown}: {without}")
        elif needless is not None:
            done.no_effect.append(f"{shown}: {needless}")
        else:
            done.no_counterpart.append(f"{shown}: unknown")


def _number(given: dict[str, list[str]], name: str) -> int | None:
    text = (given.get(name) or [""])[0]
    return int(text) if text.isdigit() else None


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("e-", "", 1).isdigit()

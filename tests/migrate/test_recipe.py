"""Megatron-LM's arguments as recipes: the kinds of its GPT-3 175B, LLaMA 8B in FP8 and 70B scripts, written anew."""

import re
from importlib.metadata import version

import pytest
import yaml

from megatron_sky.config import load_config
from megatron_sky.config.validate import check
from megatron_sky.distributed import device
from megatron_sky.errors import ConfigError
from megatron_sky.migrate import flags
from megatron_sky.migrate.recipe import translate
from megatron_sky.migrate.shell import read_script
from megatron_sky.migrate.text import recipe_text, report_lines

GPT3 = """
#!/bin/bash
CKPT=$1
DATA=$2
DIST=( --nproc_per_node 8 --nnodes 128 --master_addr head --master_port 6000 )
MODEL=( --num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048 --max-position-embeddings 2048 )
TRAIN=(
    --micro-batch-size 1
    --global-batch-size 1536
    --rampup-batch-size 16 16 5859375   # from 16 in steps of 16
    --train-samples 146484375
    --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 --init-method-std 0.006 --clip-grad 1.0
    --fp16
    --lr 6.0e-5 --lr-decay-style cosine --min-lr 6.0e-6
    --lr-warmup-samples 183105 --lr-decay-samples 126953125
)
PARALLEL=( --tensor-model-parallel-size 8 --pipeline-model-parallel-size 16 )
torchrun ${DIST[@]} pretrain_gpt.py ${MODEL[@]} ${TRAIN[@]} ${PARALLEL[@]} \\
    --data-path $DATA --vocab-file gpt2-vocab.json --merge-file gpt2-merges.txt --vocab-size 50257 --split 949,50,1 \\
    --log-interval 100 --save-interval 10000 --eval-interval 1000 --eval-iters 10 --save $CKPT --load $CKPT
"""

LLAMA_8B = """
DTYPE=${DTYPE:-fp8}
MODEL_ARGS=(
    --use-mcore-models --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32
    --group-query-attention --num-query-groups 8 --kv-channels 128
    --seq-length 8192 --max-position-embeddings 8192
    --position-embedding-type rope --rotary-base 500000 --rotary-percent 1.0
    --attention-dropout 0.0 --hidden-dropout 0.0 --swiglu --normalization RMSNorm
    --untie-embeddings-and-output-weights --disable-bias-linear
)
EXTRA=()
if [[ "$DTYPE" == "fp8" ]]; then
    EXTRA+=("--fp8-format hybrid" "--fp8-amax-history-len 1024" "--fp8-amax-compute-algo max")
fi
torchrun --nproc-per-node 8 --nnodes 1 pretrain_gpt.py ${MODEL_ARGS[@]} ${EXTRA[@]} \\
    --micro-batch-size 1 --global-batch-size 128 --train-iters 1000 --lr 1.5e-4 --min-lr 1e-5 --bf16 \\
    --lr-warmup-fraction 0.01 --lr-decay-style cosine --decoupled-lr 5e-4 \\
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --grad-reduce-in-bf16 \\
    --cross-entropy-loss-fusion --manual-gc --exit-duration-in-mins 230 \\
    --data-path 0.7 /data/web_text_document 0.3 /data/code_text_document \\
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model /models/llama3 --vocab-size 128256 --save ckpt --load old
"""

LLAMA_70B = (
    "--num-layers 80 --hidden-size 8192 --num-attention-heads 64 --group-query-attention --num-query-groups 8 "
    "--swiglu --ffn-hidden-size 28672 --normalization RMSNorm --norm-epsilon 1e-5 --seq-length 8192 --use-rope-scaling "
    "--position-embedding-type rope --rotary-base 500000 --untie-embeddings-and-output-weights --disable-bias-linear "
    "--hidden-dropout 0 --attention-dropout 0 --vocab-size 128256 --tensor-model-parallel-size 8 --sequence-parallel "
    "--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 5 --context-parallel-size 2 "
    "--micro-batch-size 1 --global-batch-size 1024 --train-iters 100000 --lr 1.5e-4 --lr-decay-style WSD "
    "--lr-wsd-decay-style minus_sqrt --lr-wsd-decay-iters 10000 --lr-warmup-iters 2000 --bf16 --recompute-granularity "
    "full --recompute-method uniform --recompute-num-layers 1 --tp-comm-overlap --reset-position-ids "
    "--reset-attention-mask --eod-mask-loss --data-path 1 d/a 1 d/b --valid-data-path d/v --save run --qk-layernorm "
    "--make-vocab-size-divisible-by 16 --ddp-bucket-size 40000000 --no-such-flag 3"
)


def resolved(done, tmp_path, *overrides: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(done, "a test"), encoding="utf-8")
    return load_config([path], overrides)


def test_gpt3_175b(tmp_path):
    script = read_script(GPT3, ["runs/gpt3", "data/pile"])
    done = translate(script.words)
    config = resolved(done, tmp_path)
    m, t, s = config.model, config.train, config.schedule
    assert (m.num_layers, m.hidden_size, m.ffn_hidden_size, m.num_query_groups) == (96, 12288, 4 * 12288, 96)
    assert (m.activation, m.normalization, m.position_embedding) == ("gelu", "layernorm", "learned_absolute")
    assert m.tie_embeddings and m.add_bias_linear and m.hidden_dropout == m.attention_dropout == 0.1
    assert m.padded_vocab_size == 51200 and m.init_std == 0.006  # 50,257 rows to a multiple of 128 * 8
    assert (config.parallel.tp_size, config.parallel.pp_size) == (8, 16)
    assert not config.parallel.distributed_optimizer and not config.precision.grad_reduce_in_fp32
    assert t.tokens == 146484375 * 2048 and t.batch_rampup.tokens == 5859375 * 2048
    assert (s.style, s.lr, s.min_lr) == ("cosine", 6e-5, 6e-6)
    assert (s.warmup_tokens, s.decay_tokens) == (183105 * 2048, 126953125 * 2048)
    assert (config.optimizer.adam_beta2, config.precision.dtype, t.run_dir) == (0.95, "fp16", "runs/gpt3")
    assert (str(config.checkpoint.interval), config.validation.max_sequences) == ("10000 steps", 15360)
    assert (done.nodes, done.gpus_per_node) == (128, 8)
    check(config, 1024)  # its rules hold on the job's 1,024 GPUs
    assert [each.split(" ")[0] for each in done.no_counterpart] == ["--split"]
    assert "slurm submit RECIPE --nodes 128 --gpus-per-node 8" in report_lines(done, script.notes)[-1]


def test_llama_8b_in_fp8(tmp_path):
    script = read_script(LLAMA_8B)
    done = translate(script.words)
    config = resolved(done, tmp_path)
    assert config.precision.fp8.format == "hybrid" and config.precision.fp8.amax_history_len == 1024
    assert config.precision.fp8.recipe == "delayed" and not config.precision.grad_reduce_in_fp32
    assert (config.model.num_query_groups, config.model.rotary_base) == (8, 500_000)
    assert config.train.tokens == 1000 * 128 * 8192 and config.schedule.warmup_tokens == config.train.tokens // 100
    assert [(each.name, each.weight) for each in config.data.train] == [
        ("web_text_document", 0.7),
        ("code_text_document", 0.3),
    ]
    assert config.resilience.time_limit_seconds == 230 * 60
    assert any("--decoupled-lr" in each for each in done.no_counterpart)
    assert any("--load old" in each and "convert from-megatron" in each for each in done.no_counterpart)
    check(config, 8)
    half = translate(read_script("DTYPE=bf16\n" + LLAMA_8B).words)
    assert "fp8" not in half.recipe["precision"]


def test_llama_70b_on_one_line(tmp_path):
    done = translate(read_script(LLAMA_70B).words)
    config = resolved(done, tmp_path)
    p, s = config.parallel, config.schedule
    assert (p.tp_size, p.pp_size, p.vpp_size, p.cp_size, p.sequence_parallel) == (8, 4, 4, 2, True)
    assert p.tp_comm_overlap and p.grad_bucket_size == 40_000_000
    assert config.model.rope_scaling.kind == "llama3" and config.model.vocab_multiple == 128
    assert (s.style, s.wsd_decay_style, s.wsd_decay_tokens) == ("wsd", "sqrt", 10_000 * 1024 * 8192)
    assert config.data.document_mask and config.data.mask_document_ends and config.train.recompute == "full"
    assert [each.path for each in config.validation.sets] == ["d/v"]
    told = " ".join(done.no_counterpart)
    assert "--qk-layernorm: another model" in told and "--no-such-flag 3: unknown" in told


@pytest.mark.parametrize("text", [GPT3, LLAMA_8B, LLAMA_70B])
def test_every_argument_is_told_exactly_once(text):
    done = translate(read_script(text).words)
    told = " ".join([*done.mapped, *done.no_effect, *done.no_counterpart])
    given = set(re.findall(r"--([a-z0-9][\w-]*)", text.partition("pretrain_gpt.py")[2] or text))
    launcher = {"nproc_per_node", "nnodes", "master_addr", "master_port", "nproc-per-node"}
    for name in given - launcher:
        assert f"--{name}" in told, name
    untold = [*done.no_effect, *done.no_counterpart]
    assert len(untold) == len({each.split(":")[0] for each in untold})
    for each in untold:
        assert not any(line.startswith(each.split(":")[0] + " ->") for line in done.mapped)


def test_a_batch_that_grows_by_tokens():
    grown = (
        '--global-batch-size 48 --seq-length 100 --train-iters 10 --step-batch-size-schedule "0:16 6400:32 12.8K:48"'
    )
    done = translate(read_script(grown).words)
    assert done.recipe["train"]["batch_rampup"] == {"start_size": 16, "increment": 16, "tokens": 12_800}
    assert done.recipe["train"]["tokens"] == 4 * 1600 + 2 * 3200 + 4 * 4800
    uneven = translate(read_script(grown.replace("6400", "3200")).words)
    assert "batch_rampup" not in uneven.recipe["train"] and "grows in equal steps" in " ".join(uneven.no_counterpart)


def test_what_arguments_do_not_tell_is_asked_for(tmp_path):
    done = translate(["--num-layers", "2"])
    asked = " ".join(done.to_give)
    for key in (
        "model.hidden_size",
        "model.vocab_size",
        "train.tokens",
        "train.global_batch_size",
        "schedule.lr",
        "data.train",
    ):
        assert key in asked
    assert "# TO GIVE: model.vocab_size" in recipe_text(done, "a test")
    assert yaml.safe_load(recipe_text(done, "a test"))["model"]["num_layers"] == 2


# Every flag whose value is a number (or, of the later ones, may be left to a variable), with all that it goes with.
NUMBERS_AND_NAMES = """
--num-layers --hidden-size --num-attention-heads --seq-length --ffn-hidden-size --num-query-groups
--kv-channels --norm-epsilon --layernorm-epsilon --hidden-dropout --attention-dropout --init-method-std
--vocab-size --make-vocab-size-divisible-by --rotary-base --rotary-percent --rope-scaling-factor
--rotary-seq-len-interpolation-factor --tensor-model-parallel-size --pipeline-model-parallel-size
--context-parallel-size --num-virtual-stages-per-pipeline-rank --num-layers-per-virtual-pipeline-stage
--ddp-bucket-size --initial-loss-scale --fp8-amax-history-len --weight-decay --adam-beta1 --adam-beta2
--adam-eps --clip-grad --global-batch-size --micro-batch-size --seed --recompute-num-layers --train-samples
--train-iters --rampup-batch-size --lr --min-lr --lr-warmup-init --lr-decay-iters --lr-decay-samples
--lr-warmup-iters --lr-warmup-samples --lr-warmup-fraction --lr-wsd-decay-iters --lr-wsd-decay-samples
--num-workers --eval-interval --eval-iters --save-interval --save-retain-interval --most-recent-k
--log-interval --distributed-timeout-minutes --exit-duration-in-mins --profile-step-start --profile-step-end
--profile-ranks --step-batch-size-schedule --normalization --position-embedding-type --lr-decay-style
--lr-wsd-decay-style --recompute-granularity --fp8-format --fp8-recipe --fp8-amax-compute-algo --optimizer
--save --load --tokenizer-model --wandb-project --wandb-exp-name --data-path --train-data-path
--valid-data-path
"""
OPEN = NUMBERS_AND_NAMES.split()
WITH = {
    "--num-query-groups": "--group-query-attention",
    "--rope-scaling-factor": "--use-rope-scaling --position-embedding-type rope",
    "--rotary": "--position-embedding-type rope",
    "--initial-loss-scale": "--fp16",
    "--fp8": "--fp8-format hybrid",
    "--lr-wsd": "--lr-decay-style WSD",
    "--wandb-exp-name": "--wandb-project p",
    "--profile": "--profile",
    "--rampup-batch-size": "--train-iters 10",
    "--make-vocab": "--tensor-model-parallel-size 1",
}
BASE = "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --global-batch-size 8 --lr 1e-3"


@pytest.mark.parametrize("flag", OPEN)
@pytest.mark.parametrize("value", ["${OPEN}", "$(of a command)", "no_number", ""])
def test_a_value_that_is_not_told_is_never_the_default(flag, value):
    needed = " ".join(text for start, text in WITH.items() if flag.startswith(start))
    count = 3 if flag == "--rampup-batch-size" else 1
    flags = {part.split(" ")[0]: part for part in f"{BASE} {needed}".replace(" --", "\n--").split("\n")} | {flag: flag}
    words = [word for part in flags.values() for word in part.split()]
    at = words.index(flag) + 1
    done = translate([*words[:at], *[value] * (count if value else 0), *words[at:]])
    told = [each for each in done.mapped if flag in each]
    if value == "no_number" and flag in OPEN[OPEN.index("--normalization") :]:
        return  # a name may be any
    other = [*done.to_give, *done.no_counterpart, *done.no_effect]
    assert any(flag in each for each in [*told, *other])
    for line in told:
        written = line.partition(" -> ")[2].partition(": ")[2]
        assert (value == "${OPEN}" and "${OPEN}" in written) or written in ("rope", "hybrid", "llama3", "linear", "0")


@pytest.mark.parametrize("flag", ["--num-query-groups", "--seed", "--adam-beta2", "--lr-warmup-fraction"])
def test_a_recipe_with_something_to_give_is_refused(flag, tmp_path):
    given = {"--group-query-attention": [], "--num-query-groups": ["2"], "--data-path": ["d"], "--save": ["r"]}
    given |= {"--vocab-size": ["9"], "--train-iters": ["10"], flag: ["$(nproc)"]}
    done = translate([*BASE.split(), *(word for name, values in given.items() for word in (name, *values))])
    assert [flag in each for each in done.to_give].count(True) >= 1
    with pytest.raises(ConfigError, match="should be a valid"):
        resolved(done, tmp_path)


def test_variables_are_read_when_the_recipe_is_loaded(tmp_path, monkeypatch):
    """With the variables in the environment the recipe is that of a script which sets them."""
    values = {
        "num-layers": "4",
        "hidden-size": "64",
        "ffn-hidden-size": "128",
        "num-attention-heads": "8",
        "num-query-groups": "2",
        "kv-channels": "8",
        "norm-epsilon": "1e-4",
        "seq-length": "32",
        "vocab-size": "99",
        "hidden-dropout": "0.0",
        "make-vocab-size-divisible-by": "64",
        "pipeline-model-parallel-size": "2",
        "global-batch-size": "8",
        "micro-batch-size": "2",
        "seed": "7",
        "lr": "6e-4",
        "min-lr": "6e-5",
        "weight-decay": "0.1",
        "adam-beta2": "0.95",
        "lr-decay-style": "cosine",
        "eval-interval": "10",
        "save-interval": "20",
        "profile-ranks": "3",
        "log-interval": "5",
        "save": "runs/x",
        "tokenizer-model": "t.model",
    }
    fixed = ["--group-query-attention", "--profile", "--valid-data-path", "v"]
    source = {name: f"${{V_{name.replace('-', '_').upper()}}}" for name in values}
    open_ones = translate([*fixed, *(w for name, text in source.items() for w in (f"--{name}", text))])
    told = translate([*fixed, *(w for name, text in values.items() for w in (f"--{name}", text))])
    rest = ["train.tokens=1M", "data.train=[]", "schedule.wsd_decay_style=linear", "train.run_dir=r"]
    for name, text in source.items():
        monkeypatch.setenv(text[2:-1], values[name])
    assert resolved(open_ones, tmp_path, *rest) == resolved(told, tmp_path, *rest)


@pytest.mark.parametrize("size", ["1000", "${N}"])
def test_the_tokens_of_a_null_tokenizer(size):
    """N + 1 up to megatron-core 0.17, N since."""
    device.setup()
    from megatron.core.tokenizers.text.libraries import NullTokenizer

    newer = tuple(map(int, version("megatron-core").split(".")[:2])) >= (0, 18)
    assert NullTokenizer(1000).vocab_size == (1000 if newer else 1001)
    done = translate(["--tokenizer-type", "NullTokenizer", "--vocab-size", size])
    (text,) = [line for line in done.to_give if line.startswith("model.vocab_size")]
    assert f"written as {size}," in text and "0.18 and newer" in text and "up to 0.17 it adds one" in text
    assert not any("0.17" in line for line in translate(["--vocab-size", size]).to_give)


def test_nodes_that_are_variables():
    script = read_script("torchrun --nnodes $SLURM_NNODES --nproc-per-node 8 pretrain_gpt.py --num-layers 2")
    shown = report_lines(translate(script.words), script.notes)[-1]
    assert "--nodes ${SLURM_NNODES} --gpus-per-node 8" in shown


def test_a_value_of_several_words(tmp_path):
    script = "B='0.3 a 0.7 b'\npython t.py --wandb-project 'My runs' --wandb-exp-name=\"13B, again\" --data-path \"$B\""
    recipe = translate(read_script(script).words).recipe
    assert recipe["monitor"]["wandb"] == {"project": "My runs", "name": "13B, again"}
    assert [(each["path"], each["weight"]) for each in recipe["data"]["train"]] == [("a", 0.3), ("b", 0.7)]


def test_variables_that_may_hold_arguments_are_told():
    done = translate(
        ["--bf16", "${MORE}", "--num-layers", "2", "${LOAD}", "--seed", "${SEED}", "--data-path", "1", "a", "2", "b"]
    )
    assert [each.split(" is ")[0] for each in done.open_words] == ["${MORE} after --bf16", "${LOAD} after --num-layers"]
    done = translate(
        [
            "torchrun",
            "$(launcher)",
            "t.py",
            "${MODEL}",
            "--bf16",
            "--save",
            "$1",
            "$(cat more)",
            "--log-throughput",
            "x${B}",
        ]
    )
    assert [each.split(" is ")[0] for each in done.open_words] == [
        "${MODEL} before the first argument",
        "$(cat more) after --save",
        "x${B} after --log-throughput",
    ]
    assert "MAY LACK: ${MODEL} before" in recipe_text(done, "t.sh")


def test_position_embeddings_beside_the_kind():
    rope = translate(["--no-position-embedding", "--use-rotary-position-embeddings", "--max-position-embeddings", "64"])
    assert len(rope.no_effect) == 2 and not rope.no_counterpart
    learned = translate(["--seq-length", "32", "--max-position-embeddings", "64"])
    assert not learned.no_effect and "another model" in learned.no_counterpart[0]
    assert "is model.seq_length" in translate(["--seq-length", "64", "--max-position-embeddings", "64"]).no_effect[0]


def test_weights_that_are_variables(tmp_path, monkeypatch):
    done = translate(["--data-path", "${W}", "d/a", "0.7", "d/b"])
    assert [each["weight"] for each in done.recipe["data"]["train"]] == ["${W}", 0.7]
    ambiguous = translate(["--data-path", "${A}", "${B}"])
    assert any(each.startswith("data.train: --data-path") for each in ambiguous.to_give)
    assert translate(["--data-path", "${DATA}"]).recipe["data"]["train"] == [
        {"name": "DATA", "path": "${DATA}", "weight": 1.0}
    ]


def test_sources_without_weights_are_mixed_by_size():
    done = translate(["--data-path", "d/a", "d/b", "d/中文", "d/a"])
    assert [each["name"] for each in done.recipe["data"]["train"]] == ["a", "b", "text", "a_3"]
    assert all(each["weight"] == ["TO GIVE"] for each in done.recipe["data"]["train"])
    assert any("numbers of the sources' samples" in each for each in done.to_give)


def test_the_decay_of_a_batch_that_grows_counts_full_batches():
    grown = "--global-batch-size 4 --seq-length 10 --rampup-batch-size 2 2 8 --train-iters 10 --lr-warmup-fraction 0.1"
    recipe = translate(grown.split()).recipe
    assert recipe["train"]["tokens"] == 4 * 20 + 6 * 40
    assert (recipe["schedule"]["decay_tokens"], recipe["schedule"]["warmup_tokens"]) == (400, 40)


def test_no_argument_is_in_two_tables():
    assert not flags.NO_EFFECT.keys() & flags.NO_COUNTERPART.keys()
    assert all(flags.NO_EFFECT.values()) and all(flags.NO_COUNTERPART.values())


def test_a_name_that_looks_like_a_number_stays_a_name(tmp_path):
    done = translate(read_script(GPT3.replace("--fp16", "--fp16 --wandb-project p --wandb-exp-name 3e-4")).words)
    (tmp_path / "r.yaml").write_text(recipe_text(done, "gpt3.sh"), encoding="utf-8")
    assert load_config([tmp_path / "r.yaml"], ["data.train=[]", "train.run_dir=r"]).monitor.wandb.name == "3e-4"

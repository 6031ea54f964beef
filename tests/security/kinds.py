"""Every kind of file that the program reads: a small valid one, what damages it, and its readers."""

import argparse
import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.security import damage as damages
from tests.security import material

LONG = "MEGATRON_SKY_FUZZ" in os.environ
"""Its value is the number of examples of each kind."""
STEP = "run/checkpoints/step_0000003"


@dataclass(frozen=True)
class Kind:
    """`read(folder)` reads the file `name` of the material, by every reader of its kind."""

    name: str
    damage: damages.Damage
    read: Callable[[Path], object]


def make(folder: Path) -> Path:
    """The material: all valid files, in `folder`."""
    from megatron_sky.convert.huggingface.folder import write_hf
    from megatron_sky.convert.sources import open_source

    material.copy(folder)
    write_hf(open_source(folder / STEP), folder / "hf", file_size=12_000)
    _write_torch_files(folder)
    _write_tokenizers(folder)
    _write_texts(folder)
    score = {"model": "a", "step": 3, "consumed_tokens": 9, "task": "t", "metric": "acc", "value": 0.5, "stderr": None}
    tasks = {"kind": "tasks", "format_version": 1, "scores": [score | {"samples": 2}]}
    (folder / "tasks.json").write_text(json.dumps(tasks))
    (folder / "site.yaml").write_text("gpus_per_node: 8\npartition: a\nsetup: [module load x]\ntime: '24:00:00'\n")
    (folder / "references.csv").write_text("set,name,lm_loss\nen,other,3.5\n")
    (folder / "published.csv").write_text("model,L_test,L_train,L_ref\na,1,2,3\nb,1,1,1\n")
    (folder / "launch.sh").write_text(
        'N=2\nARGS="--num-layers $N --hidden-size $((N * 32)) --swiglu"\nfor x in a b; do D="$D $x"; done\n'
        "torchrun --nproc_per_node 8 pretrain_gpt.py $ARGS --num-attention-heads 4 --seq-length 128 \\\n"
        "  --max-position-embeddings 128 --train-iters ${2:-10} --lr 1e-4 --data-path $D\n"
    )
    return folder


def _write_torch_files(folder: Path) -> None:
    import numpy as np
    import torch

    from megatron_sky.convert.sources import open_source

    source = open_source(folder / STEP)
    arrays = {
        name: torch.from_numpy(np.array(tensor.load()).view(np.float32)) for name, tensor in source.weights.items()
    }
    model = source.model
    args = argparse.Namespace(
        hidden_size=model.hidden_size, ffn_hidden_size=model.ffn_hidden_size, num_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads, max_position_embeddings=16, swiglu=True, add_bias_linear=False,
        normalization="RMSNorm", position_embedding_type="rope", padded_vocab_size=model.vocab_size, iteration=3,
    )  # fmt: skip
    path = folder / "megatron/iter_0000003/mp_rank_00/model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    torch.save({"args": args, "checkpoint_version": 3.0, "iteration": 3, "model": arrays}, path)
    (folder / "megatron/latest_checkpointed_iteration.txt").write_text("3")

    hf = open_source(folder / "hf")
    other = shutil.copytree(folder / "hf", folder / "hf_bin")
    for file in [*other.glob("*.safetensors"), *other.glob("*.index.json")]:
        file.unlink()
    from megatron_sky.convert.huggingface.safetensors_file import read_tensors

    tensors = {n: t for file in sorted((folder / "hf").glob("*.safetensors")) for n, t in read_tensors(file).items()}
    assert hf.weights and tensors
    torch.save(
        {name: torch.from_numpy(np.array(t.load()).view(np.float32)) for name, t in tensors.items()},
        other / "pytorch_model.bin",
    )


def _write_tokenizers(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "Ġ": 5, "c": 6}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    (folder / "json").mkdir()
    tokenizer.save(str(folder / "json/tokenizer.json"))
    (folder / "json/tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "add_bos_token": False}))


def _write_texts(folder: Path) -> None:
    import pyarrow as arrow
    import zstandard
    from pyarrow import parquet

    lines = b"".join(json.dumps({"text": f"line {n} 中文", "n": n}).encode() + b"\n" for n in range(5))
    (folder / "lines.jsonl").write_bytes(lines)
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (folder / "lines.jsonl.zst").write_bytes(zstandard.compress(lines))
    import bz2
    import lzma

    (folder / "lines.jsonl.bz2").write_bytes(bz2.compress(lines))
    (folder / "lines.jsonl.xz").write_bytes(lzma.compress(lines))
    table = arrow.table({"text": [f"row {n}" for n in range(5)], "n": list(range(5))})
    parquet.write_table(table, folder / "rows.parquet")


def _recipe(folder: Path) -> None:
    from megatron_sky.config.load import load_recipe
    from megatron_sky.config.validate import check
    from megatron_sky.trainer.sessions import sessions_of

    config = load_recipe([str(folder / "recipe.yaml")])
    check(config, 1)
    sessions_of(config)


def _pair(folder: Path) -> None:
    import megatron_sky.data.tokens.verify as verifier
    from megatron_sky.data.tokens.inspection import overview, show_document
    from megatron_sky.data.tokens.merge import merge
    from megatron_sky.data.tokens.meta import check_source, read_meta
    from megatron_sky.tokenizer.kinds import load_tokenizer

    prefix = str(folder / "tokens/en")
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    for read in (
        lambda: read_meta(prefix),
        lambda: check_source(prefix, vocab_size=560),
        lambda: verifier.verify(prefix, tokenizer=tokenizer),
        lambda: overview(prefix, tokenizer),
        lambda: show_document(prefix, 0, tokenizer),
        lambda: merge([prefix], folder / "merged", overwrite=True),
    ):
        told(read)


def _run(folder: Path) -> None:
    from megatron_sky.monitor.metrics import read_metrics
    from megatron_sky.slurm import attempts, queue
    from megatron_sky.slurm.status import status_lines
    from megatron_sky.trainer import run_record

    run_dir = folder / "run"
    before, queue.call = queue.call, lambda *_: "7|PENDING|Priority|1:00|n1\n"
    try:
        for read in (
            lambda: read_metrics(run_dir),
            lambda: run_record.read_attempts(run_dir, print),
            lambda: attempts.read_run(run_dir),
            lambda: attempts.read_cancelled(run_dir),
            lambda: status_lines(run_dir),
            lambda: _report(run_dir),
        ):
            told(read)
    finally:
        queue.call = before


def _report(run_dir: Path) -> None:
    """The whole page in long runs, in which drawing takes most of the time; else what it is made of."""
    from megatron_sky.report import build_report
    from megatron_sky.report.evaluations import evaluation_sections, load_evaluations
    from megatron_sky.report.run import load_run

    if LONG:
        build_report(run_dir)
    else:
        load_run(run_dir)
        evaluation_sections(load_evaluations([run_dir]))


def _evaluations(folder: Path) -> None:
    from megatron_sky.evaluate.results import read_documents, read_loss
    from megatron_sky.evaluate.tasks import read_tasks

    told(lambda: read_loss(folder / "run/eval"))
    told(lambda: read_tasks(folder / "tasks.json"))
    told(lambda: read_documents(folder / "run/eval/documents/run_step_0000003.jsonl"))
    told(lambda: _report(folder / "run"))


def _checkpoint(folder: Path) -> None:
    from megatron_sky.checkpoint import store
    from megatron_sky.checkpoint.description import read_description
    from megatron_sky.checkpoint.reader.diff import differences
    from megatron_sky.checkpoint.reader.index import as_torch
    from megatron_sky.inference.checkpoints import open_checkpoint

    step = folder / STEP
    for read in (
        lambda: store.verify(step),
        lambda: store.find_latest(folder / "run", lambda _: None, check=store.check_sizes),
        lambda: store.consumed_tokens(step),
        lambda: store.unlisted(step),
        lambda: store.to_prune(folder / "run", newest=3, keep_last=1, keep_every_tokens=None, warn=lambda _: None),
        lambda: read_description(step),
        lambda: as_torch(step / ".metadata"),
        lambda: _load_all(step),
        lambda: list(differences(step, step)),
        lambda: open_checkpoint(step),
    ):
        told(read)


def _load_all(path: Path, **given: object) -> None:
    from megatron_sky.convert.sources import open_source

    source = open_source(path, **given)
    for tensor in source.weights.values():
        tensor.load()


def _foreign(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        from megatron_sky.convert.huggingface.folder import write_hf
        from megatron_sky.convert.native import write_native
        from megatron_sky.convert.sources import open_source

        given = {"vocab_size": 560} if name == "megatron" else {}
        told(lambda: _load_all(folder / name, **given))
        for write in (write_native, write_hf):
            shutil.rmtree(folder / "converted", ignore_errors=True)
            told(lambda write=write: write(open_source(folder / name, **given), folder / "converted"))

    return read


def _tokenizer(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        from megatron_sky.tokenizer.check import check_tokenizer
        from megatron_sky.tokenizer.kinds import load_tokenizer

        def use() -> None:
            tokenizer = load_tokenizer(folder / name)
            tokenizer.decode(tokenizer.encode("ab cab 中"))
            check_tokenizer(tokenizer, ["ab c"])

        told(use)

    return read


def _texts(name: str, key: str = "text") -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        from megatron_sky.data.ingest.texts import sample_texts
        from megatron_sky.evaluate.documents import read_domain

        told(lambda: read_domain("d", [str(folder / name)], keys=(key,)))
        told(lambda: list(sample_texts([str(folder / name)], key=key, max_bytes=10_000)))

    return read


def _site(folder: Path) -> None:
    from megatron_sky.slurm.site import load_site

    load_site(folder / "site.yaml")


def _launch(folder: Path) -> None:
    from megatron_sky.migrate.readings import translate_script
    from megatron_sky.migrate.text import read_arguments, recipe_text, report_lines

    script = read_arguments([str(folder / "launch.sh")])
    translation = translate_script(script)
    recipe_text(translation, "launch.sh")
    report_lines(translation, script.notes)


def _tables(folder: Path) -> None:
    from megatron_sky.evaluate.run import published_leakage

    published_leakage(folder / "published.csv")


refusals: list[str] = []
"""What `told` has met."""


def told(read: Callable[[], object]) -> None:
    """Reads; our own errors are what a damaged file is to end in."""
    from megatron_sky.errors import SkyError

    try:
        read()
    except SkyError as error:
        assert "weights_only" not in str(error), error
        refusals.append(str(error))


KINDS = {
    "recipe": Kind("recipe.yaml", damages.damage_yaml, _recipe),
    "site": Kind("site.yaml", damages.damage_yaml, _site),
    "meta": Kind("tokens/en.meta.json", damages.damage_json, _pair),
    "idx": Kind("tokens/en.idx", damages.damage_bytes, _pair),
    "bin": Kind("tokens/en.bin", damages.damage_bytes, _pair),
    "run": Kind("run/run.json", damages.damage_json, _run),
    "jobs": Kind("run/slurm/jobs.json", damages.damage_json, _run),
    "metrics": Kind("run/metrics.jsonl", damages.damage_lines, _run),
    "config": Kind("run/config.yaml", damages.damage_yaml, _run),
    "loss": Kind("run/eval/loss.json", damages.damage_json, _evaluations),
    "tasks": Kind("tasks.json", damages.damage_json, _evaluations),
    "documents": Kind("run/eval/documents/run_step_0000003.jsonl", damages.damage_lines, _evaluations),
    "manifest": Kind(f"{STEP}/manifest.json", damages.damage_json, _checkpoint),
    "train_state": Kind(f"{STEP}/train_state.json", damages.damage_json, _checkpoint),
    "saved_config": Kind(f"{STEP}/config.yaml", damages.damage_yaml, _checkpoint),
    "metadata": Kind(f"{STEP}/.metadata", damages.damage_bytes, _checkpoint),
    "distcp": Kind(f"{STEP}/__0_0.distcp", damages.damage_bytes, _checkpoint),
    "common": Kind(f"{STEP}/common.pt", damages.damage_bytes, _checkpoint),
    "megatron": Kind("megatron/iter_0000003/mp_rank_00/model_optim_rng.pt", damages.damage_bytes, _foreign("megatron")),
    "latest": Kind("megatron/latest_checkpointed_iteration.txt", damages.damage_bytes, _foreign("megatron")),
    "torch_bin": Kind("hf_bin/pytorch_model.bin", damages.damage_bytes, _foreign("hf_bin")),
    "hf_config": Kind("hf/config.json", damages.damage_json, _foreign("hf")),
    "generation": Kind("hf/generation_config.json", damages.damage_json, _foreign("hf")),
    "hf_tokenizer_config": Kind("hf/tokenizer_config.json", damages.damage_json, _foreign("hf")),
    "safetensors": Kind("hf/model-00001-of-00002.safetensors", damages.damage_header, _foreign("hf")),
    "weight_map": Kind("hf/model.safetensors.index.json", damages.damage_json, _foreign("hf")),
    "tokenizer_json": Kind("json/tokenizer.json", damages.damage_json, _tokenizer("json/tokenizer.json")),
    "tokenizer_config": Kind("json/tokenizer_config.json", damages.damage_json, _tokenizer("json/tokenizer.json")),
    "tokenizer_model": Kind("tokenizer.model", damages.damage_bytes, _tokenizer("tokenizer.model")),
    "jsonl": Kind("lines.jsonl", damages.damage_lines, _texts("lines.jsonl")),
    "gz": Kind("lines.jsonl.gz", damages.damage_bytes, _texts("lines.jsonl.gz")),
    "zst": Kind("lines.jsonl.zst", damages.damage_bytes, _texts("lines.jsonl.zst")),
    "bz2": Kind("lines.jsonl.bz2", damages.damage_bytes, _texts("lines.jsonl.bz2")),
    "xz": Kind("lines.jsonl.xz", damages.damage_bytes, _texts("lines.jsonl.xz")),
    "parquet": Kind("rows.parquet", damages.damage_bytes, _texts("rows.parquet")),
    "launch": Kind("launch.sh", damages.damage_bytes, _launch),
    "published": Kind("published.csv", damages.damage_bytes, _tables),
}

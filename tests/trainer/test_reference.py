"""Preference training: the same in every layout, exact when resumed, on the base whose answers were stored."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_sky.data.chat.build import ChatOptions, write_chat
from megatron_sky.data.tokens.reference import HEADER, reference_path
from megatron_sky.monitor.metrics import read_metrics
from megatron_sky.tokenizer.chat_template import find_template
from megatron_sky.tokenizer.kinds import load_tokenizer
from tests.slow import slow_except
from tests.trainer.finetuning import LORA, settings, train_base, write_samples
from tests.trainer.test_parity import run_training

ROW, STEPS = 32, 10
LAYOUTS = {
    "tp2_sp": (2, ["parallel.tp_size=2", "parallel.sequence_parallel=true"]),
    "pp2": (2, ["parallel.pp_size=2"]),
    "dp2_zero1": (2, ["parallel.distributed_optimizer=true"]),
}
WAYS = {"whole": [], "lora": LORA}
CASES = [f"{way} {layout}" for layout in LAYOUTS for way in WAYS]


@pytest.fixture(scope="module")
def kept(corpus, tmp_path_factory) -> dict:
    """The folder of pairs and runs, and the numbers of runs that several tests look at."""
    folder = tmp_path_factory.mktemp("preference")
    write_samples(folder, corpus / "tokenizer.model")
    for name, numbers in (("train", range(120)), ("held_out", range(200, 216))):
        lines = [
            {"prompt": f"say {number}", "chosen": f"{number % 7}", "rejected": f"{number % 3}!"} for number in numbers
        ]
        path = folder / f"{name}_pairs.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        write_chat(
            [path],
            folder / f"{name}_pairs",
            load_tokenizer(folder / "chat.model"),
            find_template("skywork"),
            ChatOptions(ROW, pairs=True),
        )
    return {"folder": folder}


@pytest.fixture
def learned(kept, ranks, recipe):
    """`learned(name, *overrides, world_size=1)`: the folder and the numbers of a run on pairs, made once."""
    from megatron_sky.config import dump_config

    folder = kept["folder"]
    if not (folder / "base").exists():
        train_base(ranks, recipe, folder / "base")

    def run(name: str, *overrides: str, world_size: int = 1) -> tuple[Path, list]:
        if name not in kept:
            config = recipe(
                *settings(folder, folder / "base", folder / name),
                f"data.train=[{{name: pairs, path: {folder / 'train_pairs'}}}]",
                f"validation.sets=[{{name: held_out, path: {folder / 'held_out_pairs'}}}]",
                "finetune.dpo={beta: 0.5}",
                "schedule.lr=3.0e-3",  # at 1e-2 a step overshoots, and rounding grows with it
                *overrides,
            )
            kept[name] = ranks(world_size, run_training, dump_config(config))[0]
        return folder / name, kept[name]

    return run


@pytest.mark.parametrize("case", slow_except(CASES, "whole pp2"))
def test_layouts_are_equal(case, learned, kept):
    """The reference too, which each of them computes anew."""
    way, layout = case.split()
    world_size, overrides = LAYOUTS[layout]
    _, one = learned(way, *WAYS[way])
    path = reference_path(kept["folder"] / "train_pairs")
    before = path.read_bytes()
    path.unlink()
    _, got = learned(f"{way}_{layout}", *WAYS[way], *overrides, world_size=world_size)
    values = [np.frombuffer(content, "<f4", offset=HEADER.size) for content in (before, path.read_bytes())]
    np.testing.assert_allclose(*values, rtol=0, atol=2e-5)
    path.write_bytes(before)
    assert len(got) == len(one) == STEPS + 1
    for (loss, norm), (loss_one, norm_one) in zip(got, one, strict=True):
        assert abs(loss - loss_one) <= 1e-5
        assert abs(norm - norm_one) <= 1e-4 * norm_one


def test_it_learns_from_where_the_base_is(learned):
    folder, _ = learned("whole")
    metrics = read_metrics(folder)
    first, last = metrics.train[0], metrics.train[-1]
    assert abs(first.lm_loss - np.log(2)) < 1e-6 and abs(first.preference.margin) < 1e-6
    assert last.preference.margin > 0.1 and last.preference.accuracy > 0.8 and last.lm_loss < first.lm_loss
    held_out = metrics.validation[-1]
    assert held_out.tokens == 16 and held_out.preference.margin > 0


@pytest.mark.parametrize("way", slow_except(list(WAYS), "whole"))
def test_a_resumed_run_is_the_same_to_the_bit(learned, way):
    _, through = learned(way, *WAYS[way])
    folder, _ = learned(f"{way}_cut", *WAYS[way], f"train.max_steps={STEPS // 2}")
    _, resumed = learned(f"{way}_resumed", *WAYS[way], f"train.run_dir={folder}")
    assert resumed == through


@pytest.mark.slow
def test_the_loss_is_transformers_own(learned, kept, ranks, recipe):
    """The last validation's loss, from transformers' logits of base and trained model, by TRL's formula."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import torch.nn.functional as F

    from megatron_sky.convert.sources import open_source
    from megatron_sky.data.tokens.indexed import IndexedTokens
    from megatron_sky.data.tokens.mask import ANSWER, REJECTED, TokenMask
    from megatron_sky.generation.load import stream_weights

    exact = ["model.vocab_size=703", "model.vocab_multiple=1"]  # no rows that pad it, which transformers' has not
    base = kept["folder"] / "exact_base"
    train_base(ranks, recipe, base, *exact, "tokenizer.path=null")
    pairs = kept["folder"] / "exact_pairs"
    for path in kept["folder"].glob("held_out_pairs.*"):
        if path.suffix != ".reference":  # of the other base
            shutil.copy(path, pairs.with_name(path.name.replace("held_out", "exact")))
    sets = [f"{kind}=[{{name: pairs, path: {pairs}}}]" for kind in ("data.train", "validation.sets")]
    folder, numbers = learned("exact", *exact, f"finetune.base={base}", *sets)
    sums = {}
    for name, path in (("base", base), ("trained", folder)):
        model = stream_weights(open_source(path), torch.device("cpu"), torch.float32).eval()
        mask, sums[name] = TokenMask(pairs), []
        with IndexedTokens(pairs) as pair, torch.no_grad():
            for number in range(pair.num_documents):
                ids = torch.tensor(pair.document(number).astype(np.int64))[None]
                flags = torch.tensor(mask.read(pair.document_offset(number), ids.shape[1]).copy())
                counted = ((flags == ANSWER) | (flags == REJECTED))[1:]
                logps = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
                sums[name].append(logps[counted].sum())
    gained = torch.stack(sums["trained"]) - torch.stack(sums["base"])
    ratios = gained[0::2] - gained[1::2]
    assert abs(-F.logsigmoid(0.5 * ratios).mean().item() - numbers[-1][0]) <= 1e-5

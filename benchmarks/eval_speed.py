"""Tokens per second of `eval loss` against a plain loop over the Hugging Face model, same weights, same batches.

    python benchmarks/eval_speed.py [--shape small|large] [--rounds 8] [--threads 1]

Both sides run in this one process, in turns, on the same batches of spans of mixed lengths. The plain loop pads a
batch, calls `LlamaForCausalLM` without a mask (its fastest way) and takes torch's cross-entropy of the logits. Needs
`pip install "megatron-sky[hf]"`.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from common import SHAPE, Side, told

SMALL = SHAPE | {
    "vocab_size": 1024,
    "hidden_size": 128,
    "ffn_hidden_size": 384,
    "num_layers": 4,
    "num_attention_heads": 4,
    "seq_length": 128,
}
"""The quickstart's model."""


def write_models(folder: Path, shape: dict) -> tuple[Path, Path]:
    """(Hugging Face folder, native checkpoint) of the same random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from megatron_sky.convert.native import write_native
    from megatron_sky.convert.sources import open_source

    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["ffn_hidden_size"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_attention_heads"],
        max_position_embeddings=shape["seq_length"],
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "hf")
    write_native(open_source(folder / "hf"), folder / "native")
    return folder / "hf", folder / "native"


def make_spans(shape: dict, num_tokens: int) -> list:
    """Documents of a quarter of the context up to the whole."""
    from megatron_sky.evaluate.windows import cut_spans

    rng = np.random.default_rng(0)
    spans, done, longest = [], 0, shape["seq_length"]
    while done < num_tokens:
        length = int(rng.integers(longest // 4, longest + 1))
        ids = rng.integers(0, shape["vocab_size"], length)
        spans += cut_spans(ids, begin=0, context=longest, stride=None)
        done += length
    return spans


def plain_loop(model, spans: list, batches: list[list[int]]) -> float:
    """The loss summed over all spans, by the Hugging Face model as anyone would run it."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for batch in batches:
            chosen = [torch.from_numpy(spans[each].tokens) for each in batch]
            inputs = torch.nn.utils.rnn.pad_sequence([each[:-1] for each in chosen], batch_first=True)
            labels = torch.nn.utils.rnn.pad_sequence(
                [each[1:] for each in chosen], batch_first=True, padding_value=-100
            )
            logits = model(input_ids=inputs, use_cache=False).logits
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("small", "large"), default="small")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=0, help="tokens of a round; 0: 40,000 (small) or 8,000 (large)")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    args = parser.parse_args()
    shape = SMALL if args.shape == "small" else SHAPE
    spans = make_spans(shape, args.tokens or {"small": 40_000, "large": 8_000}[args.shape])
    with tempfile.TemporaryDirectory() as folder:
        measure(*write_models(Path(folder), shape), spans, args)


def measure(hf: Path, native: Path, spans: list, args) -> None:
    """Runs the two sides in turns, and our own Hugging Face side too, and prints the table."""
    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context
    from megatron_sky.distributed.launch import RankInfo

    with open_context(ParallelConfig(distributed_optimizer=False), RankInfo(), num_threads=args.threads) as context:
        from megatron_sky.evaluate.scoring import score_spans
        from megatron_sky.evaluate.windows import plan_batches
        from megatron_sky.inference.hf_model import HfModel, load_folder
        from megatron_sky.inference.native_model import NativeModel

        batches = plan_batches([span.num_inputs for span in spans], args.batch_tokens)
        models = {
            "native": NativeModel(native, context),
            "ours on HF": HfModel(load_folder(hf, context.device), context),
        }

        def ours(name: str) -> float:
            scores = score_spans(models[name], spans, batch_tokens=args.batch_tokens, gather=context.gather_objects)
            return sum(float(each.losses.sum()) for each in scores)

        work = {
            "native": lambda: ours("native"),
            "ours on HF": lambda: ours("ours on HF"),
            "HF loop": lambda: plain_loop(models["ours on HF"]._model, spans, batches),
        }
        tokens = sum(span.scored for span in spans)
        sides = {name: Side(name, tokens) for name in work}
        sums = {name: run() for name, run in work.items()}
        for number in range(args.rounds):
            for name in list(work)[:: 1 if number % 2 else -1]:
                wall, cpu = time.perf_counter(), time.process_time()
                work[name]()
                sides[name].seconds.append(time.perf_counter() - wall)
                sides[name].cpu_seconds.append(time.process_time() - cpu)
    print(f"{args.shape}: {len(spans)} documents, {tokens:,} tokens, {len(batches)} batches; loss per token", end=" ")
    print(", ".join(f"{name} {value / tokens:.6f}" for name, value in sums.items()))
    print(told(sides["native"], sides["HF loop"]))
    print(told(sides["ours on HF"], sides["HF loop"]))


if __name__ == "__main__":
    main()

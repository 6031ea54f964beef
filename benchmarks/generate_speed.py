"""New tokens per second of our generation against transformers' `generate` as it comes, same weights, same prompts.

    python benchmarks/generate_speed.py [--shape small|large] [--rounds 6] [--batch 4] [--new 64]

Both sides run in this one process, in turns: ours on a native checkpoint, whose weights are streamed in, theirs on the
Hugging Face folder of the same weights. Greedy, key/value cache, no end token, so that both make the same number of
tokens; the tokens are compared. Needs `pip install "megatron-sky[hf]"`.
"""

import argparse
import tempfile
import time
from pathlib import Path

from common import SHAPE, Side, told
from eval_speed import SMALL, write_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("small", "large"), default="small")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="new tokens of each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(*write_models(Path(folder), SMALL if args.shape == "small" else SHAPE), args)


def measure(hf: Path, native: Path, args) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from megatron_sky.convert.sources import open_source
    from megatron_sky.generation.engine import Engine, Request
    from megatron_sky.generation.load import stream_weights
    from megatron_sky.generation.sampling import Sampling
    from megatron_sky.tokenizer.coder import TextCoder

    cpu = torch.device("cpu")
    source = open_source(native)
    model = stream_weights(source, cpu, torch.float32)
    model.generation_config = GenerationConfig()
    size = source.model.vocab_size

    def decode(ids) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)

    coder = TextCoder(size, "characters", "", lambda text: [ord(char) - 0x4E00 for char in text], decode, None, None)
    engine = Engine(model, coder, source.model.seq_length, frozenset())
    plain = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    plain.generation_config = GenerationConfig()  # without its end token
    prompts = torch.randint(0, size, (args.batch, args.prompt), generator=torch.Generator().manual_seed(0))
    settings = GenerationConfig(do_sample=False, max_new_tokens=args.new, pad_token_id=0)

    def ours() -> list[str]:
        rows = [Request(prompt.tolist(), args.new, before=prompt.tolist()) for prompt in prompts]
        return [answer.text for answer in engine.generate(rows, Sampling(args.new))]

    def theirs() -> list[str]:
        with torch.inference_mode():
            whole = plain.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=settings)
        return [decode(row) for row in whole[:, args.prompt :].tolist()]

    work = {"ours": ours, "transformers": theirs}
    assert ours() == theirs(), "the two sides give other tokens"
    sides = {name: Side(name, args.batch * args.new) for name in work}
    for number in range(args.rounds):
        for name in list(work)[:: 1 if number % 2 else -1]:
            wall, used = time.perf_counter(), time.process_time()
            work[name]()
            sides[name].seconds.append(time.perf_counter() - wall)
            sides[name].cpu_seconds.append(time.process_time() - used)
    print(f"{args.shape}: {args.batch} prompts of {args.prompt} tokens, {args.new} new tokens each")
    print(told(sides["ours"], sides["transformers"]))


if __name__ == "__main__":
    main()

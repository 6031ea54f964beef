"""Samples per second of supervised fine-tuning: our packed rows, TRL's SFTTrainer with packing, and padded batches.

    python benchmarks/finetune_speed.py CONVERSATIONS.jsonl [--seq-length 512] [--steps 12]

All train the same LLaMA (same shape, drawn weights) on the same conversations through the same template, tokens and
answers alone counted, one process, same threads, fp32, AdamW, on a CPU. A step of ours and of TRL's with packing takes
the same number of rows of --seq-length tokens; a padded step takes as many conversations as they hold in the mean,
padded to its longest. They run one after the other: CPU seconds are the figure to trust on a machine that others use.
Needs `pip install "megatron-sky[hf]" trl`.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHAPE = {"hidden_size": 256, "ffn_hidden_size": 704, "num_layers": 6, "num_attention_heads": 8}
VOCAB_SIZE = 3000


@dataclass
class Clock:
    """Adds up steps, the first ones left out."""

    warmup: int = 2
    steps: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def begin(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.steps += 1
        if self.steps > self.warmup:
            self.wall += time.perf_counter() - self._wall
            self.cpu += time.process_time() - self._cpu

    def told(self, name: str, samples_a_step: float) -> str:
        samples = (self.steps - self.warmup) * samples_a_step
        return f"{name:34} {samples / self.wall:8.1f} samples/s, {samples / self.cpu:8.1f} per CPU second"


def prepare(conversations: Path, folder: Path, seq_length: int):
    """The tokenizer, the pair, and each of its samples' ids and answers."""
    from megatron_sky.data.chat.build import ChatOptions, write_chat
    from megatron_sky.data.tokens.indexed import IndexedTokens
    from megatron_sky.data.tokens.mask import ANSWER, PADDING, TokenMask
    from megatron_sky.tokenizer.chat_template import find_template
    from megatron_sky.tokenizer.chat_tokens import write_with_chat_tokens
    from megatron_sky.tokenizer.kinds import load_tokenizer
    from megatron_sky.tokenizer.train import train_tokenizer

    records = [json.loads(line) for line in conversations.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = (" ".join(map(str, record.values())) for record in records)
    base = train_tokenizer(texts, folder / "base.model", VOCAB_SIZE)
    write_with_chat_tokens(base, ["[USER]", "[BOT]", "[SEP]"], folder / "chat.model")
    tokenizer = load_tokenizer(folder / "chat.model")
    write_chat([conversations], folder / "chat", tokenizer, find_template("skywork"), ChatOptions(seq_length))
    samples, mask = [], TokenMask(folder / "chat")
    with IndexedTokens(folder / "chat") as pair:
        for number in range(pair.num_documents):
            ids = pair.document(number)
            flags = mask.read(pair.document_offset(number), len(ids))
            kept = flags != PADDING
            labels = np.where(flags == ANSWER, ids.astype(np.int64), -100)
            samples.append({"input_ids": ids[kept].tolist(), "labels": labels[kept].tolist()})
    return tokenizer, mask.num_rows, samples


def ours(folder: Path, tokenizer, seq_length: int, rows: int, steps: int, threads: int) -> Clock:
    """`trainer.run.train` as `megatron-sky train` runs it, from drawn weights."""
    from megatron_sky.config.schema import Config
    from megatron_sky.distributed.launch import RankInfo
    from megatron_sky.trainer import run
    from megatron_sky.trainer.loop import Trainer

    clock = Clock()

    class Timed(Trainer):
        def step(self) -> None:
            clock.begin()
            super().step()
            clock.end()

    run.Trainer = Timed
    run.train(
        Config.model_validate(
            {
                "model": SHAPE | {"vocab_size": tokenizer.vocab_size, "vocab_multiple": 1, "seq_length": seq_length},
                "precision": {"dtype": "fp32"},
                "tokenizer": {"path": str(folder / "chat.model")},
                "schedule": {"lr": 1e-4, "style": "constant"},
                "data": {
                    "train": [{"name": "chat", "path": str(folder / "chat")}],
                    "document_mask": True,
                    "max_epochs": 100,
                },
                "train": {
                    "run_dir": str(folder / "run"),
                    "tokens": steps * rows * seq_length,
                    "global_batch_size": rows,
                    "micro_batch_size": rows,
                    "num_threads": threads,
                },
            }
        ),
        RankInfo(),
    )
    return clock


def theirs(folder: Path, tokenizer, samples: list, seq_length: int, batch: int, steps: int, packing: bool) -> Clock:
    """TRL's SFTTrainer on the same tokens."""
    import torch
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from megatron_sky.tokenizer.to_huggingface import to_tokenizers

    clock = Clock()

    class Timed(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            clock.begin()

        def on_step_end(self, args, state, control, **_) -> None:
            clock.end()

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=SHAPE["hidden_size"],
            intermediate_size=SHAPE["ffn_hidden_size"],
            num_hidden_layers=SHAPE["num_layers"],
            num_attention_heads=SHAPE["num_attention_heads"],
            max_position_embeddings=seq_length,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=to_tokenizers(tokenizer), eos_token="</s>", pad_token="</s>")
    settings = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=steps,
        per_device_train_batch_size=batch,
        packing=packing,
        max_length=seq_length,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = Dataset.from_list(samples)
    SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=fast, callbacks=[Timed()]).train()
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4, help="rows of a packed step")
    parser.add_argument("--steps", type=int, default=12, help="of each side; the first two are not timed")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="megatron_sky_bench_") as name:
        folder = Path(name)
        tokenizer, rows, samples = prepare(given.conversations, folder, given.seq_length)
        per_step = len(samples) / rows * given.rows
        print(f"{len(samples):,} samples in {rows} rows of {given.seq_length} tokens; {per_step:.1f} samples a step")
        clock = ours(folder, tokenizer, given.seq_length, given.rows, given.steps, given.threads)
        told = [clock.told("megatron_sky, packed", per_step)]
        common = (folder, tokenizer, samples, given.seq_length)
        packed = theirs(*common, given.rows, given.steps, packing=True)
        told.append(packed.told("TRL SFTTrainer, packed", per_step))
        batch = round(per_step)
        padded = theirs(*common, batch, given.steps, packing=False)
        told.append(padded.told("TRL SFTTrainer, padded batches", batch))
    print("\n".join(told))


if __name__ == "__main__":
    main()

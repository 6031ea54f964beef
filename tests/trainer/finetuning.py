"""A trained base, packed samples for it, and recipes that fine-tune it, for the tests of that."""

import json
from pathlib import Path

from megatron_sky.config import dump_config
from megatron_sky.data.chat.build import ChatOptions, write_chat
from megatron_sky.tokenizer.chat_template import find_template
from megatron_sky.tokenizer.chat_tokens import write_with_chat_tokens
from megatron_sky.tokenizer.kinds import load_tokenizer
from tests.trainer.test_parity import run_training

VOCAB_SIZE, ROW = 703, 32  # the corpus's 700, and three of chat's
STEPS = 10


def write_samples(folder: Path, tokenizer_path: Path) -> None:
    """`folder`: chat.model, train and held_out pairs, of questions with short answers."""
    write_with_chat_tokens(load_tokenizer(tokenizer_path), ["[USER]", "[BOT]", "[SEP]"], folder / "chat.model")
    tokenizer, template = load_tokenizer(folder / "chat.model"), find_template("skywork")
    for name, numbers in (("train", range(0, 200)), ("held_out", range(200, 216))):
        records = [{"instruction": f"say {number}", "output": f"{number % 7}{number % 3}"} for number in numbers]
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        write_chat([path], folder / name, tokenizer, template, ChatOptions(ROW))


def train_base(ranks, recipe, out: Path, *more: str) -> None:
    """A base of two steps, trained on the corpus."""
    overrides = ["train.max_steps=2", "validation.sets=[]", "checkpoint.save_optimizer=false", *more]
    ranks(1, run_training, dump_config(recipe(f"train.run_dir={out}", *overrides)))


def settings(samples: Path, base: Path, run_dir: Path) -> list[str]:
    """Overrides of the tests' recipe that fine-tune `base`."""
    return [
        f"finetune.base={base}",
        f"tokenizer.path={samples / 'chat.model'}",
        f"model.vocab_size={VOCAB_SIZE}",
        f"data.train=[{{name: chat, path: {samples / 'train'}}}]",
        "data.document_mask=true",
        "data.max_epochs=100",
        f"validation.sets=[{{name: held_out, path: {samples / 'held_out'}}}]",
        f"train.run_dir={run_dir}",
        f"train.max_steps={STEPS}",
        "schedule.warmup_tokens=0",
        "finetune.keep_best=false",
        "validation.max_sequences=null",
    ]


LORA = ["finetune.lora={rank: 4, alpha: 8}"]

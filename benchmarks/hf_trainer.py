"""Tokens/s of megatron_sky against Hugging Face's Trainer on LlamaForCausalLM, on this machine's CPUs.

Both train a LLaMA of the same shape on the same token file, with the same dtype, micro and global batch, processes,
threads, AdamW settings and gradient clipping. Each side has its own processes, which stay alive and take turns: while
one side runs a block of steps, the other waits for its turn on a pipe. So both meet the same noise, and neither pays
for the other's start-up. The clock is the parent's, from the word "go" to the last rank's answer.

Neither side saves or validates. megatron_sky runs as `megatron-sky train` does, with its log line, metrics.jsonl and
TensorBoard at every step; the Trainer logs nothing.

    python benchmarks/hf_trainer.py [--dtype bf16] [--nproc 2] [--rounds 8]
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import SHAPE, WARMUP_STEPS, Side, recipe, told
from turns import Team, Turns, compare_teams, free_port, train_in_turns


@dataclass(frozen=True)
class Setting:
    """One comparison."""

    folder: Path
    dtype: str
    nproc: int
    threads: int
    micro_batch_size: int
    global_batch_size: int
    rounds: int
    steps_per_block: int
    warmup_steps: int
    hf_optimizer: str
    hf_weights: str
    distributed_optimizer: bool

    @property
    def steps(self) -> int:
        """More than will run: when the parent has its figures it ends both sides, before they save anything."""
        return self.warmup_steps + self.rounds * self.steps_per_block + 10


def ours(pipe, setting: Setting, rank: int, port: int) -> None:
    """One rank of megatron_sky's side: `trainer.run.train`, waiting for its turns. Its losses are in metrics.jsonl."""
    join_job(setting, rank, port)
    train_in_turns(_recipe(setting), Turns(pipe, setting))


def theirs(pipe, setting: Setting, rank: int, port: int) -> None:
    """One rank of Hugging Face's side."""
    join_job(setting, rank, port)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from megatron_sky.data.tokens.indexed import IndexedTokens

    torch.set_num_threads(setting.threads)
    turns = Turns(pipe, setting)
    tokens = IndexedTokens(setting.folder / "tokens")
    length = SHAPE["seq_length"]

    class Sequences(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return (tokens.num_tokens - 1) // length

        def __getitem__(self, index: int) -> dict:
            ids = torch.from_numpy(tokens.read(index * length, length).astype("int64"))
            return {"input_ids": ids, "labels": ids}

    class OwnLoss(Trainer):
        """Keeps each step's loss, which the Trainer would otherwise hand to its log only."""

        loss = 0.0

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            self.loss = self.loss + loss
            return loss

    class InTurns(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            turns.before_step()

        def on_step_end(self, args, state, control, **_) -> None:
            turns.after_step(trainer.loss)
            trainer.loss = 0.0

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SHAPE["vocab_size"],
            hidden_size=SHAPE["hidden_size"],
            intermediate_size=SHAPE["ffn_hidden_size"],
            num_hidden_layers=SHAPE["num_layers"],
            num_attention_heads=SHAPE["num_attention_heads"],
            max_position_embeddings=length,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
    if setting.hf_weights == "bf16":
        model = model.to(torch.bfloat16)
    config = _recipe(setting)
    trainer = OwnLoss(
        model=model,
        args=TrainingArguments(
            output_dir=str(setting.folder / "hf"),
            use_cpu=True,
            ddp_backend="gloo" if setting.nproc > 1 else None,
            bf16=setting.dtype == "bf16" and setting.hf_weights == "fp32",
            per_device_train_batch_size=setting.micro_batch_size,
            gradient_accumulation_steps=setting.global_batch_size // (setting.micro_batch_size * setting.nproc),
            max_steps=setting.steps,
            learning_rate=config.schedule.lr,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=WARMUP_STEPS,
            optim=setting.hf_optimizer,
            adam_beta1=config.optimizer.adam_beta1,
            adam_beta2=config.optimizer.adam_beta2,
            adam_epsilon=config.optimizer.adam_eps,
            weight_decay=config.optimizer.weight_decay,
            max_grad_norm=config.optimizer.clip_grad,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Sequences(),
        callbacks=[InTurns()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def join_job(setting: Setting, rank: int, port: int) -> None:
    """torchrun's variables for this rank, before torch is imported; a job of one process needs none."""
    sys.stdout = open(setting.folder / "log.txt", "a")  # noqa: SIM115 (until the process ends)
    os.dup2(sys.stdout.fileno(), 1)
    os.environ["OMP_NUM_THREADS"] = str(setting.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if setting.nproc > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(setting.nproc),
            "LOCAL_WORLD_SIZE": str(setting.nproc),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }


def compare(setting: Setting) -> tuple[Side, Side, list[list[float]]]:
    """Runs both sides in turns: their times, and each side's loss at every step."""
    from megatron_sky.monitor.metrics import read_metrics

    tokens = setting.steps_per_block * setting.global_batch_size * SHAPE["seq_length"]
    sides = [Side("megatron_sky", tokens), Side("HF Trainer", tokens)]
    teams = []
    for work in (ours, theirs):
        port = free_port()
        teams.append(Team(work, [(setting, rank, port) for rank in range(setting.nproc)]))
    _, their_losses = compare_teams(teams, sides, setting.rounds)
    return *sides, [[record.lm_loss for record in read_metrics(setting.folder / "run").train], their_losses]


def _recipe(setting: Setting):
    return recipe(
        setting.folder,
        steps=setting.steps,
        dtype=setting.dtype,
        micro_batch_size=setting.micro_batch_size,
        global_batch_size=setting.global_batch_size,
        threads=setting.threads,
        distributed_optimizer=setting.distributed_optimizer,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--nproc", type=int, default=1, help="data-parallel processes of each side, over gloo")
    parser.add_argument("--threads", type=int, default=0, help="per process; 0: the cores shared out")
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--global-batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8, help="blocks of each side that are timed")
    parser.add_argument("--steps-per-block", type=int, default=1)
    parser.add_argument("--warmup-steps", type=int, default=2, help="steps of each side before the clock")
    parser.add_argument("--hf-optimizer", choices=["adamw_torch_fused", "adamw_torch"], default="adamw_torch_fused")
    parser.add_argument(
        "--hf-weights",
        choices=["fp32", "bf16"],
        default="fp32",
        help="with --dtype bf16: fp32 weights under autocast, as the Trainer's bf16=True has it (and as megatron_sky "
        "keeps fp32 masters), or bf16 weights and no masters",
    )
    parser.add_argument(
        "--distributed-optimizer",
        action="store_true",
        help="our side shards its optimizer (ZeRO-1), which the Trainer's DDP does not: half the optimizer state with "
        "two processes, for more communication",
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="megatron_sky_bench_") as folder:
        cores = len(os.sched_getaffinity(0))
        values = vars(given) | {"folder": Path(folder), "threads": given.threads or max(1, cores // given.nproc)}
        setting = Setting(**values)
        _recipe(setting)  # writes the tokens once, before the processes look for them
        our_side, their_side, losses = compare(setting)
    print(
        f"{setting.dtype}, {setting.nproc} process(es) of {setting.threads} thread(s), {setting.hf_optimizer}, "
        f"batch {setting.global_batch_size} x {SHAPE['seq_length']} in micro batches of {setting.micro_batch_size}"
    )
    print(told(our_side, their_side))
    for side, values in zip((our_side, their_side), losses, strict=True):
        print(f"{side.name:18} loss of each step: {' '.join(f'{value:.3f}' for value in values)}")


if __name__ == "__main__":
    main()

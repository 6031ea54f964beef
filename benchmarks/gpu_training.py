"""Training speed of a slice of Skywork-13B on one GPU: our backends in bf16 and 8 bits, beside Hugging Face's Llama.

    python benchmarks/gpu_training.py                     # everything that this machine can run, within 8 minutes
    python benchmarks/gpu_training.py --only torch-bf16-mb1 hf-bf16-mb1 --steps 20
    python benchmarks/gpu_training.py --tiny              # seconds on a CPU: shows that it works, measures nothing

As many of the 52 layers as the GPU holds with sequences of 4,096 tokens, the same number on every side. Every side is
a process of its own, one after the other on the same card: random tokens that lie ready on the device, forward,
backward, clipping to 1.0 and AdamW. Ours keeps bf16 weights, fp32 gradients, masters and moments; Hugging Face's
LlamaForCausalLM (SDPA, torch.compile) keeps fp32 weights, gradients and moments under bf16 autocast, with torch's fused
AdamW.

tokens/s: by the median step. Model FLOPs of a token: 6 N + 12 L h s (megatron_sky.model.flops), N with embedding, no
discount for the causal half, nothing for recomputation. MFU: model FLOP/s over the card's dense peak in bf16; for
8-bit runs over its 8-bit peak as well. After the timed steps one more is profiled, by kernel class.

Needs torch and a copy of this repository; on a bare machine, `--wheels FOLDER` unpacks the wheels of megatron-core and
of what else is missing (pydantic, einops, psutil, xxhash, ...) from that folder. A side whose packages are absent is
left out and named.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIDES = [
    f"{side}-mb{micro_batch_size}"
    for micro_batch_size in (1, 2)
    for side in ("torch-bf16", "torch-delayed", "torch-tensorwise", "te-bf16", "te-delayed", "te-tensorwise", "hf-bf16")
]
BUDGET_SECONDS = 480
TINY = {"vocab_size": 512, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4, "seq_length": 64}


def main() -> None:
    options = _options()
    if options.wheels is not None:
        _unpack(options.wheels)
    if options.side is not None:
        print(json.dumps(measure_or_tell(options)))
        return
    started, results = time.monotonic(), []
    layers = options.layers or layers_that_fit(options)
    print(f"{layers} of 52 layers, {options.steps} steps a side", flush=True)
    for side in options.only or (["torch-bf16-mb1", "torch-delayed-mb1", "hf-bf16-mb1"] if options.tiny else SIDES):
        left = BUDGET_SECONDS - (time.monotonic() - started)
        result = _run(side, layers, options, left) if left > 30 else {"side": side, "left out": "no time left"}
        results.append(result)
        print(_row(result), flush=True)
    print(report(results))
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def report(results: list[dict]) -> str:
    """The card, the table again in one piece, and every side's time by kernel class."""
    measured = [each for each in results if "tokens_per_second" in each]
    lines = ["", *(f"{each['device']}, torch {each['torch']}" for each in measured[:1]), _head()]
    lines += [_row(each) for each in results]
    for each in measured:
        lines += ["", f"{each['side']}: one step by kernel class", each["profile"]]
    return "\n".join(lines)


def _head() -> str:
    columns = f"{'side':<22}{'tokens/s':>10}{'step s':>9}{'TFLOP/s':>9}{'MFU':>8}{'MFU fp8':>9}{'GiB':>7}"
    return f"{columns}  first and last loss"


def _row(result: dict) -> str:
    if "tokens_per_second" not in result:
        return f"{result['side']:<22}left out: {result['left out']}"
    shares = [f"{each:.1%}" if each is not None else "-" for each in (result["mfu"], result["mfu_fp8"])]
    return (
        f"{result['side']:<22}{result['tokens_per_second']:>10,.0f}{result['step_seconds']:>9.3f}{result['tflops']:>9.1f}"
        f"{shares[0]:>8}{shares[1]:>9}{result['peak_gib']:>7.1f}  {result['losses'][0]:.3f} {result['losses'][-1]:.3f}"
    )


def _run(side: str, layers: int, options, seconds: float) -> dict:
    """One side in a process of its own, so that its memory is its own."""
    command = [sys.executable, __file__, "--side", side, "--layers", str(layers), "--steps", str(options.steps)]
    command += ["--tiny"] if options.tiny else []
    command += ["--wheels", str(options.wheels)] if options.wheels else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"side": side, "left out": f"did not end within {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return {"side": side} | json.loads(lines[-1])
    errors = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return {"side": side, "left out": errors[-1][:200] if errors else f"exit code {done.returncode}"}


def layers_that_fit(options) -> int:
    """Layers of Skywork-13B that one GPU holds in training, by arithmetic: state of 18 bytes a parameter, activations.

    Activations of a layer and token: about 34 h + 10 f bytes with bf16 and an attention that keeps no scores; logits
    take 10 bytes each. For micro batches of 2; a tenth of the memory is left free.
    """
    if options.tiny:
        return 2
    from megatron_sky.config.schema import ModelConfig
    from megatron_sky.distributed import device
    from megatron_sky.model.flops import num_parameters

    model = ModelConfig(preset="skywork_13b")
    found = device.gpus()
    if not found:
        sys.exit("no GPU is to be seen; --tiny runs on a CPU, to show that it works")
    tokens = 2 * model.seq_length
    ends = num_parameters(model.model_copy(update={"num_layers": 1}))
    layer = num_parameters(model.model_copy(update={"num_layers": 2})) - ends
    fixed = 18 * (ends - layer) + 10 * tokens * model.padded_vocab_size
    each = 18 * layer + tokens * (34 * model.hidden_size + 10 * model.ffn_hidden_size)
    fits = int((0.9 * found[0]["memory_gib"] * 2**30 - fixed) // each)
    if fits < 1:
        sys.exit(
            f"{found[0]['name']} with {found[0]['memory_gib']} GiB holds not one layer of this model with its optimizer"
        )
    return min(fits, model.num_layers)


def measure_or_tell(options) -> dict:
    """One side's numbers, or why it has none: a package that is absent, or what this card can't do."""
    import torch

    from megatron_sky.errors import ConfigError, SkyError

    try:
        return measure(options)
    except ConfigError as error:
        return {"left out": str(error.problems[0]).splitlines()[0]}
    except (SkyError, ImportError, torch.OutOfMemoryError) as error:
        return {"left out": str(error).splitlines()[0]}


def measure(options) -> dict:
    """One side's numbers."""
    import torch

    from megatron_sky.distributed import device
    from megatron_sky.model.flops import flops_per_token
    from megatron_sky.monitor.kernels import table
    from megatron_sky.monitor.throughput import peak_tflops
    from megatron_sky.trainer.profiler import kernel_times

    backend, precision, micro_batch = options.side.split("-")
    config = recipe(options, backend, precision, int(micro_batch.removeprefix("mb")))
    with (hugging_face if backend == "hf" else ours)(config, compiled=not options.tiny) as step:
        losses = [step() for _ in range(3)]
        seconds = []
        for _ in range(options.steps):
            device.synchronize()
            start = time.perf_counter()
            losses.append(step())
            device.synchronize()
            seconds.append(time.perf_counter() - start)
        profile = device.kernel_profile()
        with profile:
            step()
            device.synchronize()
    tokens = config.train.micro_batch_size * config.model.seq_length
    rate = tokens / statistics.median(seconds)
    tflops = rate * flops_per_token(config.model) / 1e12
    peaks = [peak_tflops(device.name(), each) for each in ("bf16", "fp8" if precision != "bf16" else "fp32")]
    return {
        "device": device.name(),
        "torch": torch.__version__,
        "layers": config.model.num_layers,
        "tokens_per_second": rate,
        "step_seconds": statistics.median(seconds),
        "tflops": tflops,
        "mfu": tflops / peaks[0] if peaks[0] else None,
        "mfu_fp8": tflops / peaks[1] if peaks[1] else None,
        "peak_gib": device.peak_memory_bytes() / 2**30,
        "losses": [float(each) for each in losses],
        "profile": table(kernel_times(profile), steps=1, top=8),
    }


def recipe(options, backend: str, precision: str, micro_batch_size: int):
    """The slice as a recipe, checked as a run's would be."""
    from megatron_sky.config.schema import Config
    from megatron_sky.config.validate import check

    shape = TINY if options.tiny else {"preset": "skywork_13b"}
    config = Config.model_validate(
        {
            "model": {**shape, "num_layers": options.layers, "backend": "torch" if backend == "hf" else backend},
            "precision": {"dtype": "bf16", "fp8": None if precision == "bf16" else {"recipe": precision}},
            "schedule": {"style": "constant", "lr": 1e-4},
            "train": {
                "run_dir": "none",
                "tokens": 1,
                "global_batch_size": micro_batch_size,
                "micro_batch_size": micro_batch_size,
            },
        }
    )
    check(config, 1)
    return config


class ours:
    """A step of megatron_sky's: `StepRunner.compute` and `apply`, as the training loop calls them."""

    def __init__(self, config, compiled: bool):
        self._config = config

    def __enter__(self):
        from megatron_sky.data.loader import Batch
        from megatron_sky.distributed import device
        from megatron_sky.distributed.context import open_context
        from megatron_sky.distributed.launch import RankInfo
        from megatron_sky.errors import ConfigError
        from megatron_sky.model.build import build_model
        from megatron_sky.optim.build import build_optimizer
        from megatron_sky.trainer.startup import find_machine_problems
        from megatron_sky.trainer.step import StepRunner

        config = self._config
        device.setup()
        if problems := find_machine_problems(config):
            raise ConfigError(problems)
        self._open = open_context(config.parallel, RankInfo())
        context = self._open.__enter__()
        context.seed_step(1, 0)
        sections = {"parallel": config.parallel, "precision": config.precision}
        model = build_model(config.model, **sections, train=config.train, kernels=config.kernels, context=context)
        optimizer = build_optimizer(config.optimizer, schedule=config.schedule, **sections, chunks=model.chunks)
        runner = StepRunner(
            model,
            optimizer=optimizer,
            numbers=config.optimizer,
            context=context,
            seq_length=config.model.seq_length,
            micro_batch_size=config.train.micro_batch_size,
            masks_documents=False,
            dropout_seed=None,
            beat=lambda doing: None,
        )
        tokens, labels, mask, positions = _random_batch(config, context.device)
        batch = Batch(tokens=tokens, labels=labels, loss_mask=mask, position_ids=positions)

        def step():
            result = runner.compute([batch], num_microbatches=1, step=0)
            runner.apply(result, lr=config.schedule.lr)
            return result.lm_loss

        return step

    def __exit__(self, *exc_info):
        self._open.__exit__(*exc_info)


class hugging_face:
    """A step of LlamaForCausalLM's."""

    def __init__(self, config, compiled: bool):
        self._config, self._compiled = config, compiled

    def __enter__(self):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from megatron_sky.distributed import device

        m, o = self._config.model, self._config.optimizer
        torch.set_float32_matmul_precision("high")
        target = device.use(0)
        torch.manual_seed(1)
        with target:
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=m.padded_vocab_size,
                    hidden_size=m.hidden_size,
                    intermediate_size=m.ffn_hidden_size,
                    num_hidden_layers=m.num_layers,
                    num_attention_heads=m.num_attention_heads,
                    num_key_value_heads=m.query_groups,
                    max_position_embeddings=m.seq_length,
                    rms_norm_eps=m.norm_epsilon,
                    attn_implementation="sdpa",
                    use_cache=False,
                )
            )
        run = torch.compile(model) if self._compiled else model
        tokens, labels, *_ = _random_batch(self._config, target)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=self._config.schedule.lr,
            betas=(o.adam_beta1, o.adam_beta2),
            eps=o.adam_eps,
            weight_decay=o.weight_decay,
            fused=True,
        )

        def step():
            optimizer.zero_grad()
            with torch.autocast(target.type, dtype=torch.bfloat16):
                loss = run(input_ids=tokens, labels=labels, shift_labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss.item()

        return step

    def __exit__(self, *exc_info):
        pass


def _random_batch(config, target):
    """tokens, labels, loss mask and positions of one micro batch, on the device."""
    import torch

    shape = (config.train.micro_batch_size, config.model.seq_length)
    generator = torch.Generator().manual_seed(7)
    row = torch.randint(config.model.vocab_size, (shape[0], shape[1] + 1), generator=generator).to(target)
    positions = torch.arange(shape[1], device=target).expand(shape)
    return row[:, :-1].contiguous(), row[:, 1:].contiguous(), torch.ones(shape, device=target), positions


def _unpack(wheels: Path) -> None:
    """Makes the wheels of a folder importable, with what torch's own installation lacks."""
    target = Path(tempfile.gettempdir()) / f"megatron_sky_wheels_{os.getuid()}"
    if not target.exists():
        found = [str(path) for path in sorted(wheels.glob("*.whl"))]
        half = target.with_name(target.name + ".half")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", half]
        subprocess.run([*command, *found], check=True)
        half.rename(target)
    sys.path.append(str(target))


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SIDES, metavar="SIDE", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--layers", type=int, help="default: as many as fit")
    parser.add_argument("--steps", type=int, help="timed steps a side; default 10")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, for a CPU")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to unpack first")
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (2 if options.tiny else 10)
    return options


if __name__ == "__main__":
    main()

"""Whether `plan` predicts `train`'s steps on this machine, from what `plan --calibrate` measured on it.

One run: measures the machine, trains one model in several layouts (one process, TP2, PP2, DP2, each over gloo in
processes that stay alive and take turns, a step at a time, so that all meet the same noise), measures it again, and
prints for each layout the predicted step, the median of those that train logged, and their ratio. The prediction is the
mean of the two files'; how far they lie apart says how steady the machine was.

What it does not show: a GPU's rates, more than one machine, a step beside a save or a validation.

    python benchmarks/plan_calibrate.py [--dtype bf16] [--rounds 5] [--micro-batch-size 1] [--hidden-size 512]
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from common import recipe
from hf_trainer import Setting, join_job
from turns import Team, Turns, free_port, train_in_turns

LAYOUTS = {
    "one process": (1, {}),
    "TP2": (2, {"tp_size": 2}),
    "PP2": (2, {"pp_size": 2}),
    "DP2": (2, {}),
    "DP2, no ZeRO-1": (2, {"distributed_optimizer": False}),
}


def config_of(setting: Setting, parallel: dict, model: dict):
    """The layout's recipe; all of them read the same tokens."""
    config = recipe(
        setting.folder.parent,
        steps=setting.steps,
        dtype=setting.dtype,
        micro_batch_size=setting.micro_batch_size,
        global_batch_size=setting.global_batch_size,
        threads=0,
    )
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "parallel": config.parallel.model_copy(update=parallel),
            "train": config.train.model_copy(update={"run_dir": str(setting.folder / "run")}),
        }
    )


def train(pipe, setting: Setting, rank: int, port: int, config) -> None:
    """One rank: `trainer.run.train`, waiting for its turn before each step."""
    join_job(setting, rank, port)
    del os.environ["OMP_NUM_THREADS"]
    train_in_turns(config, Turns(pipe, setting))


def measure(configs: dict, settings: dict[str, Setting]) -> dict[str, list[float]]:
    """Seconds of the steps that train logged, by layout, those of the warm-up left out."""
    from megatron_sky.monitor.metrics import read_metrics

    teams = []
    for name, setting in settings.items():
        port = free_port()
        teams.append(Team(train, [(setting, rank, port, configs[name]) for rank in range(setting.nproc)]))
    rounds = next(iter(settings.values())).rounds
    try:
        for _ in range(rounds + 1):
            for team in teams:
                team.take_turn()
    finally:  # a step is logged before its rank answers
        for team in teams:
            team.end()
    return {
        name: [record.step_seconds for record in read_metrics(setting.folder / "run").train][setting.warmup_steps :]
        for name, setting in settings.items()
    }


def predict(configs: dict, file: Path) -> dict[str, float]:
    from megatron_sky.planner.forecast import Forecast
    from megatron_sky.planner.hardware import cluster_of, find_gpu
    from megatron_sky.planner.job import Job

    cluster = cluster_of(find_gpu(str(file)))
    return {name: Forecast(Job.of(config, cluster, LAYOUTS[name][0])).step.total for name, config in configs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each layout that are timed")
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--global-batch-size", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=10)
    parser.add_argument("--calibration-seconds", type=float, default=100)
    parser.add_argument("--keep", type=Path, help="copy the hardware files into this folder")
    options = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)
    from megatron_sky.distributed.device import share_of_cores
    from megatron_sky.planner.calibration.command import calibrate

    heads, ffn = options.hidden_size // 64, options.hidden_size * 11 // 4
    model = {"hidden_size": options.hidden_size, "num_layers": options.num_layers}
    model |= {"num_attention_heads": heads, "ffn_hidden_size": ffn}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            layout: Setting(
                folder=folder / str(number),
                dtype=options.dtype,
                nproc=nproc,
                threads=share_of_cores(nproc),
                micro_batch_size=options.micro_batch_size,
                global_batch_size=options.global_batch_size,
                rounds=options.rounds,
                steps_per_block=1,
                warmup_steps=2,
                hf_optimizer="",
                hf_weights="",
                distributed_optimizer=True,
            )
            for number, (layout, (nproc, _)) in enumerate(LAYOUTS.items())
        }
        for setting in settings.values():
            setting.folder.mkdir(parents=True)
        configs = {layout: config_of(settings[layout], parallel, model) for layout, (_, parallel) in LAYOUTS.items()}
        files = [folder / "before.yaml", folder / "after.yaml"]
        calibrate(files[0], seconds=options.calibration_seconds)
        measured = measure(configs, settings)
        calibrate(files[1], seconds=options.calibration_seconds)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for file in files:
                (options.keep / file.name).write_bytes(file.read_bytes())
        show(measured, [predict(configs, file) for file in files])


def show(measured: dict[str, list[float]], predictions: list[dict[str, float]]) -> None:
    print(f"{'':16}{'predicted s':>12}{'before .. after':>20}{'measured s':>12}{'quartiles':>18}{'ratio':>8}")
    for name, seconds in measured.items():
        low, median, high = statistics.quantiles(seconds, n=4)
        both = [prediction[name] for prediction in predictions]
        mean = statistics.mean(both)
        apart, spread = " .. ".join(f"{value:.3f}" for value in both), f"{low:.3f} .. {high:.3f}"
        print(f"{name:16}{mean:12.3f}{apart:>20}{median:12.3f}{spread:>18}{mean / median:8.3f}")


if __name__ == "__main__":
    main()

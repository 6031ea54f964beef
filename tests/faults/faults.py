"""Things that go wrong, each a patch of the training process made before it starts."""

import os
import signal
import time
from dataclasses import replace

BAD_STEP = 6  # counted from 1


def _patch_compute(change) -> None:
    """`change(trainer, result, times)` stands between a step's numbers and the loop; `times` counts its runs."""
    from megatron_sky.trainer.loop import Trainer

    compute, runs = Trainer.compute, {}

    def patched(self, planned, batches):
        step = self.state.step + 1
        runs[step] = runs.get(step, 0) + 1
        return change(self, compute(self, planned, batches), runs[step])

    Trainer.compute = patched


def _is_bad(trainer) -> bool:
    """Whether the step in hand reads the samples that step BAD_STEP reads in an unhurt run."""
    first = trainer.state.plan_numbers(trainer.state.consumed_samples, 1)[0]
    return first == (BAD_STEP - 1) * trainer.train.global_batch_size


def nan_in_the_data(config) -> None:
    """The samples of step BAD_STEP give NaN whenever they are trained on."""
    _patch_compute(lambda trainer, result, times: replace(result, lm_loss=float("nan")) if _is_bad(trainer) else result)


def nan_once(config) -> None:
    """A passing fault of the hardware: the first run of step BAD_STEP gives a gradient norm that is not finite."""
    _patch_compute(
        lambda trainer, result, times: (
            replace(result, grad_norm=float("inf")) if _is_bad(trainer) and times == 1 else result
        )
    )


def spike_in_the_data(config) -> None:
    _patch_compute(lambda trainer, result, times: replace(result, lm_loss=99.0) if _is_bad(trainer) else result)


def signal_in_a_step(config) -> None:
    def ask(trainer, result, times):
        if trainer.state.step + 1 == BAD_STEP:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    _patch_compute(ask)


def two_signals_in_a_step(config) -> None:
    def ask(trainer, result, times):
        if trainer.state.step + 1 == BAD_STEP:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
        return result

    _patch_compute(ask)


def signal_in_validation(config) -> None:
    from megatron_sky.trainer.validation import Validator

    evaluate = Validator.evaluate

    def patched(self, stops_now):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, stops_now)

    Validator.evaluate = patched


def signal_in_a_save(config) -> None:
    from megatron_sky.checkpoint.saver import Saver

    start = Saver.start

    def patched(self, progress, **how):
        os.kill(os.getpid(), signal.SIGUSR2)
        return start(self, progress, **how)

    Saver.start = patched


def truncated_data(config) -> None:
    """A source's file shrinks under the running job."""

    def cut(trainer, result, times):
        if trainer.state.step + 1 == 3:
            for source in config.data.train:
                os.truncate(f"{source.path}.bin", 100)
        return result

    _patch_compute(cut)


def blind_to_free_space(config) -> None:
    """The disk fills up after it was checked."""
    from megatron_sky.checkpoint import saver
    from megatron_sky.trainer import startup

    saver.checkpoint_bytes = startup.checkpoint_bytes = lambda config: 0


def slow_rank_1(trainer, result, times):
    if trainer.context.rank == 1:
        time.sleep(0.2)
    return result


def saves_fail_until_step_8(config) -> None:
    """The disk refuses the checkpoints' folders for a while."""
    from megatron_sky.checkpoint.saver import Saver

    prepare = Saver._prepare

    def patched(self, temporary, described):
        if described["progress"]["step"] <= 8:
            raise OSError(28, "No space left on device")
        prepare(self, temporary, described)

    Saver._prepare = patched


def before_step(config, step: int, act) -> None:
    """Has `act(run_dir)` called once, before step `step` (counted from 1) is computed."""
    from pathlib import Path

    def at(trainer, result, times):
        if trainer.state.step + 1 == step and times == 1:
            act(Path(config.train.run_dir))
        return result

    _patch_compute(at)


def deleted_lock(config) -> None:
    before_step(config, 3, lambda run_dir: (run_dir / ".lock").unlink())


def lock_taken_on_another_machine(config) -> None:
    """The lock's file is deleted, and a job starts on a machine that sees that file and not the lock of the folder."""
    import subprocess
    import sys

    def take(run_dir) -> None:
        (run_dir / ".lock").unlink()
        hold = f"files.hold({str(run_dir / '.lock')!r}, print, note='pid 9 on n7')"
        code = f"from megatron_sky import files; import sys\nwith {hold}: print(flush=True); sys.stdin.read()"
        holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        holder.stdout.readline()
        take.holder = holder  # which ends with this process, whose end closes its standard input

    before_step(config, 6, take)


def _tokenizer_folder(config):
    from pathlib import Path

    path = Path(config.tokenizer.path)
    return path if path.is_dir() else path.parent


def deleted_tokenizer(config) -> None:
    import shutil

    folder = _tokenizer_folder(config)
    before_step(config, 3, lambda run_dir: shutil.rmtree(folder))


def replaced_tokenizer(config) -> None:
    folder = _tokenizer_folder(config)

    def replace_it(run_dir) -> None:
        for file in folder.iterdir():
            file.write_bytes(b"another")

    before_step(config, 3, replace_it)

"""The command line: one verb, one function. A verb imports its package when called, so help is quick."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from megatron_sky import __version__
from megatron_sky.cli import (
    checkpoint,
    convert,
    corpus,
    data,
    doctor,
    eval,
    generate,
    migrate,
    plan,
    report,
    slurm,
    tokenizer,
    train,
)
from megatron_sky.cli._common import verb_group
from megatron_sky.distributed.helpers import EndedBySignal, end_orderly
from megatron_sky.errors import OutputLost, RunError, SkyError
from megatron_sky.log import quiet_torch, say
from megatron_sky.terminal import shown_output

app = verb_group(
    "The open training system behind Skywork-13B, on megatron-core: from a laptop's CPU to 512 GPUs.", "megatron-sky"
)

INTERRUPTED = 130
_SPINS = "1000"  # of some hundred thousand: alone, a small model keeps nine tenths of its speed
quiet_torch()  # here, so that it holds in the processes too that megatron-core spawns: they import this file alone


def main() -> None:
    """Entry point: what a user can fix is told in words, with an exit code; the rest keeps its traceback."""
    _let_idle_threads_sleep()
    end_orderly()
    with shown_output():
        code = _exit_code(app)
        lost = 0 if code == OutputLost.exit_code else _exit_code(sys.stdout.flush)  # told once
    sys.exit(code or lost)


def _exit_code(work: Callable[[], object]) -> int:
    """What `work` comes to, its failure said on standard error."""
    try:
        work()
    except SkyError as error:
        say(f"megatron-sky: {error}")
        return error.exit_code
    except OSError as error:
        if error.filename is None:
            return _unforeseen()
        fix = "see that it is there, that you may read or write it, and that its disk has room"
        say(f"megatron-sky: {error.filename}: {error.strerror}\n  fix: {fix}")
        return RunError.exit_code
    except SystemExit as left:
        if left.code == INTERRUPTED:  # typer's answer to Ctrl-C
            say("megatron-sky: interrupted")
        if isinstance(left, EndedBySignal):
            say(f"megatron-sky: ended by {signal.Signals(left.number).name}")
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except Exception:
        return _unforeseen()
    return 0


def _unforeseen() -> int:
    """A mistake of the program: its traceback, as Python would print it, is for who repairs it."""
    say(traceback.format_exc())
    return 1


def _let_idle_threads_sleep() -> None:
    """OpenMP's threads spin while they wait for work. On a machine that others use too, they take the cores from those
    who have some, and the run falls to a fifth of its speed. Must come before torch is imported.

    OMP_WAIT_POLICY and GOMP_SPINCOUNT of the environment are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


for name, group in {
    "checkpoint": checkpoint,
    "convert": convert,
    "corpus": corpus,
    "data": data,
    "slurm": slurm,
    "eval": eval,
    "tokenizer": tokenizer,
}.items():
    app.add_typer(group.app, name=name)
app.command()(convert.release)
app.command()(doctor.doctor)
app.command("from-args", context_settings={"ignore_unknown_options": True})(migrate.from_args)
app.command("from-nemo")(migrate.from_nemo)
app.command()(train.quickstart)
app.command()(train.train)
app.command()(plan.plan)
app.command()(report.report)
app.command()(generate.generate)
app.command()(generate.chat)
app.command()(generate.serve)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"megatron-sky {__version__}")
        raise typer.Exit


@app.command()
def schema() -> None:
    """Print the recipe's JSON schema, for editors that complete and check YAML."""
    import json

    from megatron_sky.config import json_schema

    print(json.dumps(json_schema(), indent=2))

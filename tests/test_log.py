"""Every rank's file keeps everything; the screen shows rank 0's own lines."""

import logging
import os
import subprocess
import sys
import warnings

import pytest

from megatron_sky import log
from megatron_sky.errors import RunError
from megatron_sky.log import get_logger, setup_logging


@pytest.fixture(autouse=True)
def restore_logging():
    root, ours = logging.getLogger(), logging.getLogger(log.ROOT)
    handlers, level = list(root.handlers), ours.level
    yield
    for handler in [each for each in root.handlers if each not in handlers]:
        root.removeHandler(handler)
        handler.close()
    ours.setLevel(level)
    logging.captureWarnings(False)


def test_loggers_stay_below_the_package():
    assert get_logger("megatron_sky.data").name == "megatron_sky.data"
    assert get_logger("tests").name == "megatron_sky.tests"
    assert get_logger("megatron_skyline").name == "megatron_sky.megatron_skyline"


def test_rank_0_writes_screen_and_file(tmp_path, capsys):
    setup_logging(0, 2, tmp_path)
    get_logger("here").info("loss [red]3.4[/red] %s", "x" * 300)
    logging.getLogger("library").warning("a library's worry")
    logging.getLogger("library").error("a library's failure")
    warnings.warn("a python warning", stacklevel=1)
    shown, kept = capsys.readouterr().err, (tmp_path / "logs" / "rank_00000.log").read_text()
    assert "INFO    loss [red]3.4[/red] " + "x" * 300 + "\n" in shown
    assert "failure" in shown and "worry" not in shown and "python warning" not in shown
    for part in ("rank 0 of 2", "loss [red]3.4", "worry", "failure", "a python warning"):
        assert part in kept


IMPORTED = "import megatron_sky.cli.main; import torch, logging; "


def heard(code, **environment):
    """What `code` leaves on the screen where the command line's module was imported first."""
    command = [sys.executable, "-c", IMPORTED + code]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stderr


def test_that_torch_finds_no_gpu_is_not_on_the_screen():
    tell = "torch_log = logging.getLogger('torch.utils.cpp_extension'); torch_log.warning({!r}, '/usr/local/cuda')"
    assert heard(tell.format("No CUDA runtime is found, using CUDA_HOME=%r")) == ""
    assert "something else" in heard(tell.format("something else %s"))
    assert heard("import torch.utils.cpp_extension", CUDA_HOME="/usr/local/cuda") == ""  # said by builds for CUDA alone


def test_other_ranks_write_their_file_only(tmp_path, capsys):
    setup_logging(13, 16, tmp_path)
    get_logger("here").info("hello")
    assert capsys.readouterr().err == ""
    assert "hello" in (tmp_path / "logs" / "rank_00013.log").read_text()


def test_attempts_are_appended_each_under_a_header(tmp_path):
    for number in range(2):
        setup_logging(0, 1, tmp_path)
        get_logger("here").info("attempt number %d", number)
    text = (tmp_path / "logs" / "rank_00000.log").read_text()
    assert text.count("===== attempt ") == 2
    assert text.count("attempt number") == 2  # the first call's handlers are gone: nothing twice


def test_without_a_run_folder(capsys):
    setup_logging(0, 1, None)
    get_logger("here").warning("careful")
    assert "WARNING careful" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(RunError, match="fix: choose a writable run_dir"):
        setup_logging(0, 1, tmp_path)

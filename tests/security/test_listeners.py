"""No command that starts ranks on one machine listens to another machine, or lets another user into its store."""

import contextlib
import os
import stat
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from megatron_sky.config import dump_config


def addresses_listened_at(process: psutil.Process) -> set[str]:
    """IP addresses at which it and its descendants listen now."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            connections = one.net_connections("inet") if hasattr(one, "net_connections") else one.connections("inet")
        except psutil.Error:  # it has ended
            continue
        found |= {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    return found


def watch(folder: Path, *command: str) -> tuple[set[str], set[Path]]:
    """Addresses listened at while `command` ran, and the files that were stores."""
    listened, stores = set(), set()
    env = os.environ | {"TMPDIR": str(folder)}
    with (folder / "said").open("w+") as said:
        process = psutil.Popen([sys.executable, "-m", "megatron_sky", *command], env=env, stdout=said, stderr=said)
        while process.poll() is None:
            listened |= addresses_listened_at(process)
            for store in folder.glob("megatron_sky_*/store"):
                stores.add(store)
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    assert stat.S_IMODE(store.parent.stat().st_mode) == 0o700, "open to other users"
            time.sleep(0.01)
        said.seek(0)
        assert process.returncode == 0, said.read()
    return listened, stores


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as name:  # short: a socket's path may have 100 letters
        yield Path(name)


def test_ranks_of_one_machine_listen_to_it_alone(recipe, folder):
    path = folder / "recipe.yaml"
    path.write_text(dump_config(recipe("train.max_steps=3", "monitor.tensorboard=true")))
    listened, stores = watch(folder, "train", str(path), "--nproc", "2")
    assert listened == {"127.0.0.1"} and len(stores) == 1, "gloo's, between the ranks"


def test_the_doctors_ranks_listen_to_this_machine_alone(folder):
    listened, stores = watch(folder, "doctor", "--ranks", "2", "--run-dir", str(folder), "--disk-mib", "1")
    assert listened == {"127.0.0.1"} and len(stores) == 1


def test_a_process_alone_listens_to_nobody(recipe, folder):
    path = folder / "recipe.yaml"
    path.write_text(dump_config(recipe("train.max_steps=2")))
    listened, stores = watch(folder, "train", str(path))
    assert listened <= {"127.0.0.1"} and not stores


def test_a_job_that_meets_at_a_port_listens_at_its_address_alone(ranks):
    assert ranks(1, listens_at, "127.0.0.1") == [["127.0.0.1"]]
    assert ranks(1, listens_at, "localhost") in ([["127.0.0.1"]], [["::1"]])


def listens_at(info, host: str) -> list[str]:
    from dataclasses import replace

    from megatron_sky.distributed.rendezvous import meet

    store = meet(replace(info, master_addr=host), {}, timeout_seconds=30, warn=print)
    addresses = addresses_listened_at(psutil.Process())
    del store
    return sorted(addresses)

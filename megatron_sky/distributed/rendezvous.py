"""How the ranks of a job find each other, and prove that they are about to do the same thing.

Every rank checks in at the job's store with what it runs (package versions, recipe, data). Rank 0 waits for all, names
the ones that did not come, compares, and answers with a word to go on or the reason not to; only then are process
groups made. The store stays open for the run: the watchdog posts there when nothing else moves.
"""

import errno
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from datetime import timedelta
from typing import TYPE_CHECKING

from megatron_sky.distributed.launch import LOOPBACK, RankInfo
from megatron_sky.errors import NodeError, RunError

if TYPE_CHECKING:
    from torch.distributed import Store

CLOCK_SECONDS = 30.0
ANSWER_SECONDS = 60.0
READ_SECONDS = 5.0
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


def choose_interface(info: RankInfo, environ: MutableMapping[str, str] = os.environ) -> None:
    """Names the network interface for gloo, unless the user did: loopback for a job on one machine.

    gloo by itself takes the address that this host's name leads to, complains of a name that leads nowhere (as in a
    container) and then takes loopback, where other nodes never reach it. On several nodes such a name, and one that
    leads to loopback, make way for the interface by which this node reaches the job's store.
    """
    if GLOO_INTERFACE in environ:
        return
    if info.master_addr is None or info.local_world_size == info.world_size:
        address: str | None = LOOPBACK
    elif _leads_out(socket.gethostname()):
        return
    else:
        address = _local_address(info.master_addr, info.master_port)
    interface = _interface_of(address)
    if interface is not None:
        environ[GLOO_INTERFACE] = interface
        if address == LOOPBACK:
            environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def _leads_out(host: str) -> bool:
    """Whether a host's name leads to an address of this machine by which another may reach it."""
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return any(_interface_of(address) not in (None, _interface_of(LOOPBACK)) for address in addresses)


def _local_address(host: str, port: int) -> str | None:
    """This machine's address on the route to `host`; None where there is none. Nothing is sent."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return probe.getsockname()[0]
    except (OSError, UnicodeError):  # the store's own message names the host and the variable to set
        return None


def _interface_of(address: str | int | None) -> str | None:
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None


def meet(info: RankInfo, facts: dict, *, timeout_seconds: float, warn: Callable[[str], None]) -> "Store":
    """The job's store, once all ranks have checked in with equal `facts` (plain JSON values).

    Raises on every rank: NodeError where a rank did not come in time, RunError where its facts are not rank 0's.
    """
    store = _open_store(info, timeout_seconds)
    store.set(f"here/{info.rank}", json.dumps({"facts": facts, "clock": time.time()}))
    if info.rank == 0:
        absent, ranks = _wait_for_all(store, info.world_size, timeout_seconds)
        differing = "" if absent else disagreement([rank["facts"] for rank in ranks])
        store.set("answer", json.dumps({"absent": absent, "differing": differing}))
        if absent or differing:
            _wait_until_read(store, len(ranks) - 1)
        else:
            _compare_clocks([rank["clock"] for rank in ranks], warn)
    else:
        absent, differing = _wait_for_answer(store, timeout_seconds + ANSWER_SECONDS)
        store.add("read", 1)
    if absent:
        raise NodeError(absent)
    if differing:
        raise RunError(differing)
    return store


def disagreement(facts: list[dict]) -> str:
    """In words, where a rank's facts are not rank 0's; empty where all agree."""
    differing = [
        f"  rank {rank}: {name} = {mine.get(name)!r}, rank 0 has {facts[0].get(name)!r}"
        for rank, mine in enumerate(facts)
        for name in sorted(mine.keys() | facts[0].keys())
        if mine.get(name) != facts[0].get(name)
    ]
    if not differing:
        return ""
    more = f"\n  and {len(differing) - 8} more" if len(differing) > 8 else ""
    return (
        "the ranks don't agree on what to run:\n" + "\n".join(differing[:8]) + more + "\n"
        "  fix: give every node the same installation, recipe and data files"
    )


def _open_store(info: RankInfo, timeout_seconds: float):
    import torch.distributed as dist

    if info.store_file is not None:
        file = dist.FileStore(info.store_file, info.world_size)
        file.set_timeout(timedelta(seconds=timeout_seconds))
        return file
    if info.master_addr is None:
        return dist.HashStore()
    agent = info.from_torchrun and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = info.rank == 0 and not agent
    try:
        store = dist.TCPStore(
            info.master_addr,
            info.master_port,
            is_master=serves,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_seconds),
            master_listen_fd=_listen_at(info.master_addr, info.master_port) if serves else None,
        )
    except (dist.DistError, TimeoutError, OSError) as error:
        where = f"{info.master_addr}:{info.master_port}"
        raise NodeError(
            f"rank {info.rank} can't reach the job's store at {where}: {error}\n"
            f"  fix: set MASTER_ADDR and MASTER_PORT to an address of rank 0's node that the others reach"
        ) from error
    return dist.PrefixStore(f"megatron_sky/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _listen_at(host: str, port: int) -> int | None:
    """A socket that listens at this address alone, not on all interfaces as torch's own would.

    None, for torch's own, where the address isn't this machine's or others see another one under its name: a name that
    leads to loopback here.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        is_loopback = ipaddress.ip_address(target[0]).is_loopback
        if is_loopback and host not in (target[0], "localhost"):
            return None
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError):
        return None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(4096)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
    return listener.detach()


def _wait_for_all(store, world_size: int, timeout_seconds: float) -> tuple[str, list[dict]]:
    """("", what every rank said), or (who is missing, what the others said)."""
    missing = list(range(world_size))
    end = time.monotonic() + timeout_seconds
    while missing:
        missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
        if missing and time.monotonic() > end:
            shown = ", ".join(map(str, missing[:16])) + (" ..." if len(missing) > 16 else "")
            there: list[dict] = [{}] * (world_size - len(missing))
            return (
                f"{len(missing)} of {world_size} ranks did not arrive within {timeout_seconds:.0f} s "
                f"(resilience.startup_timeout_seconds): {shown}\n"
                f"  fix: look at those ranks' logs and nodes"
            ), there
        if missing:
            time.sleep(0.05)
    return "", [json.loads(store.get(f"here/{rank}")) for rank in range(world_size)]


def _wait_for_answer(store, timeout_seconds: float) -> tuple[str, str]:
    """(who is absent, which facts differ), in words: both empty where the job may go on."""
    import torch.distributed as dist

    try:
        store.wait(["answer"], timedelta(seconds=timeout_seconds))
        answer = json.loads(store.get("answer"))
        return answer["absent"], answer["differing"]
    except dist.DistError as error:
        return f"rank 0 gave no answer within {timeout_seconds:.0f} s: {error}\n  fix: look at rank 0's log", ""


def _wait_until_read(store, readers: int) -> None:
    """The store ends with rank 0, so a bad answer is left there until the others have it (a few seconds at most)."""
    end = time.monotonic() + READ_SECONDS
    while store.add("read", 0) < readers and time.monotonic() < end:
        time.sleep(0.05)


def _compare_clocks(clocks: list[float], warn: Callable[[str], None]) -> None:
    """A rank that came later has a later clock; only a rank whose clock is far from now is wrong."""
    off = {rank: clock - time.time() for rank, clock in enumerate(clocks) if clock - time.time() > CLOCK_SECONDS}
    if off:
        rank, seconds = max(off.items(), key=lambda item: item[1])
        warn(f"the clock of rank {rank}'s node is {seconds:.0f} s ahead of rank 0's; log lines will not be in order")

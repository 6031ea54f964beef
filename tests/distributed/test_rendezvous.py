"""Meeting: all come and agree, or every rank is told who is missing or different."""

import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from megatron_sky.distributed import rendezvous
from megatron_sky.distributed.launch import RankInfo
from megatron_sky.distributed.rendezvous import disagreement, meet
from megatron_sky.errors import NodeError, RunError, SkyError
from tests.ranks import _free_port


def meet_together(facts: list[dict], world_size: int, timeout_seconds: float = 30) -> list[SkyError | None]:
    """Each of len(facts) ranks' error, None where it met the others."""
    port, told = _free_port(), [None] * len(facts)
    everyone = threading.Barrier(len(facts))

    def rank(number: int) -> None:
        info = RankInfo(number, world_size, number, world_size, "127.0.0.1", port)
        store = None
        try:
            store = meet(info, facts[number], timeout_seconds=timeout_seconds, warn=print)
        except SkyError as error:
            told[number] = error
        everyone.wait()
        del store  # held until all have read their answer

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(facts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_all_agree():
    assert meet_together([{"torch": "2.13"}] * 3, 3) == [None, None, None]


def test_a_missing_rank_is_named_to_all():
    for error in meet_together([{}, {}], 3, timeout_seconds=1.0):
        assert type(error) is NodeError and "1 of 3 ranks did not arrive" in str(error)
        assert str(error).split("seconds): ")[1].startswith("2")


def test_a_rank_that_differs_is_named_to_all():
    for error in meet_together([{"torch": "2.13"}, {"torch": "2.12"}], 2):
        assert type(error) is RunError and "rank 1: torch = '2.12', rank 0 has '2.13'" in str(error)


def test_a_store_that_can_not_be_reached_is_a_nodes_fault():
    with pytest.raises(NodeError, match="rank 1 can't reach the job's store"):
        meet(RankInfo(1, 2, 1, 2, "127.0.0.1", _free_port()), {}, timeout_seconds=1.0, warn=print)


def test_disagreement_in_words():
    assert disagreement([{"a": 1}, {"a": 1}]) == ""
    assert "and 2 more" in disagreement([{str(i): 0 for i in range(10)}, {str(i): 1 for i in range(10)}])


def addresses(monkeypatch, *, host_leads_to: str | None) -> None:
    """A machine of two interfaces whose own name leads to `host_leads_to`, and to which 10.0.0.9 is another node."""
    entry = partial(SimpleNamespace, family=socket.AF_INET)
    interfaces = {
        "lo": [entry(address="127.0.0.1")],
        "eth7": [entry(address="10.0.0.7"), entry(address="fe80::1%eth7")],
    }
    resolve = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **options):
        if host != socket.gethostname():
            return resolve(host, port, *args, **options)
        if host_leads_to is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host_leads_to, port, *args, **options)

    monkeypatch.setattr("psutil.net_if_addrs", lambda: interfaces)
    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    monkeypatch.setattr(rendezvous, "_local_address", lambda host, port: {"10.0.0.9": "10.0.0.7"}.get(host, host))


ALONE, ONE_NODE = RankInfo(), RankInfo(1, 4, 1, 4, "10.0.0.9", 29500)
TWO_NODES = RankInfo(1, 4, 1, 2, "10.0.0.9", 29500)


@pytest.mark.parametrize(
    ("info", "host_leads_to", "interface"),
    [
        (ALONE, None, "lo"),
        (ONE_NODE, None, "lo"),
        (ONE_NODE, "10.0.0.7", "lo"),
        (TWO_NODES, "10.0.0.7", None),  # gloo chooses it by itself
        (TWO_NODES, None, "eth7"),
        (TWO_NODES, "127.0.0.1", "eth7"),
        (TWO_NODES, "10.9.9.9", "eth7"),  # an old entry: not an address of this machine
        (replace(TWO_NODES, master_addr="127.0.0.1"), None, "lo"),
        (replace(TWO_NODES, master_addr="10.1.1.1"), None, None),
    ],
)
def test_gloos_interface(info, host_leads_to, interface, monkeypatch):
    addresses(monkeypatch, host_leads_to=host_leads_to)
    environ = {}
    rendezvous.choose_interface(info, environ)
    assert environ.get("GLOO_SOCKET_IFNAME") == interface
    set_by_the_user = {"GLOO_SOCKET_IFNAME": "ib0"}
    rendezvous.choose_interface(info, set_by_the_user)
    assert set_by_the_user == {"GLOO_SOCKET_IFNAME": "ib0"}


def test_the_route_to_a_host_is_found_without_sending():
    assert rendezvous._local_address("127.0.0.1", 9) == "127.0.0.1"
    assert rendezvous._local_address("no.such.host.invalid", 9) is None


NAMELESS = """
import socket
from megatron_sky.config.schema import ParallelConfig
from megatron_sky.distributed.context import open_context
from megatron_sky.distributed.launch import RankInfo
print(socket.gethostname())
with open_context(ParallelConfig(), RankInfo()) as context:
    print(context.agree([3]))
"""


def test_a_host_whose_name_leads_nowhere_is_not_complained_of():
    """As in a container or a laptop under another network's name. The toolkit without a GPU is no matter either."""
    name = "no-such-host-2718"
    namespace = ["unshare", "--uts", "--map-root-user", "sh", "-c", f'hostname {name} && exec "$0" "$@"']
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody give a process a host name of its own (unshare --uts)")
    environ = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    environ["CUDA_HOME"] = "/usr"
    done = subprocess.run(
        [*namespace, sys.executable, "-c", NAMELESS], capture_output=True, text=True, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == name and "[3]" in done.stdout
    assert "hostname" not in done.stderr and "CUDA" not in done.stderr

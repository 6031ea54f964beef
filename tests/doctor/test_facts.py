"""What a machine has, read from what its tools say."""

from megatron_sky.doctor import facts

TOPOLOGY = """
\tGPU0\tGPU1\tNIC0\tCPU Affinity
GPU0\t X \tNV18\tPXB\t0-47
GPU1\tNV18\t X \tSYS\t0-47
NIC0\tPXB\tSYS\t X
"""


def test_nvlinks_and_infiniband_are_read(tmp_path):
    assert facts.nvlinks(TOPOLOGY) == 18
    assert facts.nvlinks(TOPOLOGY.replace("NV18", "PHB")) == 0
    assert facts.nvlinks("") is None
    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    assert facts.infiniband(tmp_path) == [
        {"device": "mlx5_0", "port": "1", "state": "ACTIVE", "rate": "400 Gb/sec (4X NDR)"}
    ]
    assert facts.infiniband(tmp_path / "none") == []

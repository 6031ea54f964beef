"""Which engine serves, and which addresses are open to whom."""

import socket

import pytest

pytest.importorskip("transformers")

from megatron_sky.distributed import device
from megatron_sky.errors import ConfigError, RunError
from megatron_sky.serve import run
from megatron_sky.serve.limits import Limits
from tests.convert.huggingface.conftest import llama

__all__ = ["llama"]


def test_an_open_address_needs_a_key(monkeypatch, tmp_path):
    monkeypatch.delenv(run.KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=r"there is no API key\n .*fix: set MEGATRON_SKY_API_KEY"):
        run.serve(tmp_path, host="0.0.0.0", port=1, limits=Limits())


def test_vllm_where_it_can_be_and_the_reason_where_not(monkeypatch, llama):
    folder = llama()
    assert run.choose_engine(folder, "transformers") == ("transformers", "it was asked for")
    monkeypatch.setattr(device, "has_gpu", lambda: False)
    monkeypatch.setattr(device, "can_import", lambda name: False)
    assert run.choose_engine(folder, "auto") == ("transformers", "there is no GPU; vLLM is not installed")
    with pytest.raises(ConfigError, match="there is no GPU; vLLM is not installed"):
        run.choose_engine(folder, "vllm")
    with pytest.raises(ConfigError, match="must be auto, vllm or transformers"):
        run.choose_engine(folder, "magic")
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(device, "can_import", lambda name: name == "vllm")
    assert run.choose_engine(folder, "auto")[0] == "vllm"


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RunError, match=r"--port \d+: .*in use\n  fix: choose another port"):
            run._listen("127.0.0.1", taken.getsockname()[1])

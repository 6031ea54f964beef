"""Which backend computes, and why; and which layers stay as wide as they are."""

import sys
from types import ModuleType

import pytest

from megatron_sky.config.schema import Fp8Config, ModelConfig
from megatron_sky.errors import ConfigError
from megatron_sky.model import backends
from megatron_sky.model.backends import choose_backend


def model(**fields) -> ModelConfig:
    return ModelConfig.model_validate({"preset": "tiny"} | fields)


@pytest.fixture
def transformer_engine(monkeypatch):
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


def test_the_cpu_has_torch_alone():
    assert choose_backend(model(), on_gpu=False) == ("torch", "this machine has no CUDA device")
    assert choose_backend(model(backend="torch"), on_gpu=True) == ("torch", "the recipe asks for it")
    with pytest.raises(ConfigError, match=r"model\.backend = 'te': can't be used here: this machine has no CUDA"):
        choose_backend(model(backend="te"), on_gpu=False)


def test_transformer_engine_where_it_is(transformer_engine):
    assert choose_backend(model(), on_gpu=True) == ("te", "CUDA and Transformer Engine are present")
    assert choose_backend(model(backend="te"), on_gpu=True) == ("te", "the recipe asks for it")
    assert choose_backend(model(backend="torch"), on_gpu=True)[0] == "torch"


def test_one_that_is_not_installed_and_one_that_does_not_fit(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    assert choose_backend(model(), on_gpu=True) == ("torch", "Transformer Engine is not installed")

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("transformer_engine"):
                raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "transformer_engine")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    name, reason = choose_backend(model(), on_gpu=True)
    assert name == "torch" and "can't be imported (torch" in reason and "libcudart.so.13" in reason


@pytest.mark.parametrize(("keeps", "wide"), [(True, [True, False, False, True]), (False, [False] * 4)])
def test_the_first_and_last_layer_may_stay_wide(keeps, wide):
    fp8 = Fp8Config(first_last_layers_bf16=keeps)
    assert [backends._stays_wide(fp8, number, 4) for number in range(4)] == wide

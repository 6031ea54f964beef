"""config.json of a Hugging Face folder, and the library that runs it."""

import sys

import pytest

from megatron_sky.errors import CheckpointError, MissingDependency
from megatron_sky.inference.hf_folder import hf_settings, is_skywork, transformers_for


def test_settings_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert hf_settings(tmp_path) == {"architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("text", "message"), [(None, "can't be read"), ("{", "can't be read"), ("[]", "is no description of a model")]
)
def test_what_is_no_config_is_named(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        hf_settings(tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"architectures": ["SkyworkForCausalLM"]}, True),
        ({"architectures": ["LlamaForCausalLM"]}, False),
        ({"architectures": None}, False),
        ({}, False),
    ],
)
def test_the_published_form_is_known(settings, expected):
    assert is_skywork(settings) == expected


def test_without_the_library_its_install_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency, match=r"pip install 'megatron-sky\[hf\]'") as caught:
        transformers_for(tmp_path)
    assert str(tmp_path) in str(caught.value)

"""A Hugging Face folder's name and config.json."""

import os

import pytest

from megatron_sky.errors import CheckpointError
from megatron_sky.inference.hf_folder import check_name, hf_settings, is_skywork


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


def test_a_name_that_hugging_faces_libraries_cannot_open(tmp_path):
    check_name(tmp_path / "数据")
    with pytest.raises(CheckpointError, match="no UTF-8"):
        check_name(tmp_path / os.fsdecode(b"na\xffme"))

"""What a Hugging Face folder says beside its weights survives the way to a native checkpoint and back."""

import json
import shutil

import pytest

from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from tests.convert.huggingface.conftest import llama  # noqa: F401

GENERATION = {
    "bos_token_id": 1,
    "eos_token_id": [2, 7],
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "repetition_penalty": 1.05,
    "stop_strings": ["</turn>"],
}
TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"


@pytest.fixture
def chatty(hf, tmp_path):
    """A folder of a chat model: stop tokens, sampling settings, a chat template, added tokens, extra keys."""
    folder = tmp_path / "chatty"
    shutil.copytree(hf("tp2"), folder)
    (folder / "conversion.json").unlink()
    change(folder / "config.json", eos_token_id=[2, 7], pad_token_id=0, pretraining_tp=2, note="ours", use_cache=False)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    change(folder / "tokenizer_config.json", chat_template=TEMPLATE, model_max_length=4096, padding_side="left")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def change(path, **keys) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys))


def content(folder, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("kept", ["tokenizer.model", "tokenizer.json", "both"])
def test_stop_tokens_sampling_and_templates_survive(kept, chatty, tmp_path):
    for name in {"tokenizer.model", "tokenizer.json"} - {kept} if kept != "both" else ():
        (chatty / name).unlink()
    back = write_hf(
        open_source(write_native(open_source(chatty), tmp_path / "native").folder), tmp_path / "back"
    ).folder
    assert content(back, "generation_config.json") == GENERATION
    before, after = content(chatty, "config.json"), content(back, "config.json")
    assert after == before  # of this package's own spelling, so key by key
    settings, written = content(chatty, "tokenizer_config.json"), content(back, "tokenizer_config.json")
    assert {name: written[name] for name in settings} == settings
    assert (back / "chat_template.jinja").read_text() == TEMPLATE
    for name in ("tokenizer.model", "tokenizer.json", "special_tokens_map.json"):
        if (chatty / name).is_file():
            assert (back / name).read_bytes() == (chatty / name).read_bytes()
    transformers = pytest.importorskip("transformers")
    loaded = transformers.GenerationConfig.from_pretrained(back)
    assert (loaded.eos_token_id, loaded.temperature, loaded.do_sample) == ([2, 7], 0.6, True)
    chat = transformers.AutoTokenizer.from_pretrained(back).apply_chat_template
    assert chat([{"role": "user", "content": "Hi"}], tokenize=False) == "<|user|>Hi"


def test_settings_in_config_json_alone_are_not_hidden(chatty, tmp_path):
    """transformers takes them only where there is no generation_config.json."""
    (chatty / "generation_config.json").unlink()
    change(chatty / "config.json", task_specific_params={"text-generation": {"max_length": 50}})
    back = write_hf(
        open_source(write_native(open_source(chatty), tmp_path / "native").folder), tmp_path / "back"
    ).folder
    assert not (back / "generation_config.json").exists()
    assert content(back, "config.json") == content(chatty, "config.json")


def test_one_folder_into_another_keeps_them_too(chatty, tmp_path):
    back = write_hf(open_source(chatty), tmp_path / "back", file_size=60_000).folder
    assert content(back, "generation_config.json") == GENERATION
    assert content(back, "config.json") == content(chatty, "config.json")


def test_what_is_not_carried_over_is_named(chatty, tmp_path):
    for name in ("modeling_ours.py", "LICENSE", "vocab.json"):
        (chatty / name).write_text("")
    source = open_source(chatty)
    assert source.left_out == ("LICENSE, modeling_ours.py, vocab.json: not carried over",) and not source.warnings
    done = write_native(source, tmp_path / "native")
    assert json.loads((done.folder / "conversion.json").read_text())["left_out"] == list(source.left_out)


def test_changed_settings_are_another_conversion(chatty, tmp_path):
    write_native(open_source(chatty), tmp_path / "native")
    change(chatty / "generation_config.json", temperature=0.7)
    with pytest.raises(
        CheckpointError, match=r"conversion:\n  hugging_face\.generation\.temperature: 0\.6 then, 0\.7 now\n"
    ):
        write_native(open_source(chatty), tmp_path / "native")


def test_a_checkpoint_trained_here_has_none(native):
    assert open_source(native("tp2")).hugging_face is None


def test_tokens_without_a_row_are_said(hf, tmp_path):
    folder = tmp_path / "hf"
    shutil.copytree(hf("tp2"), folder)
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 700}')
    with pytest.raises(CheckpointError, match="its config says 700 and its tokenizer says 701"):
        open_source(folder)
    source = open_source(folder, vocab_size=700)
    assert any("1 of its tokens have no row in the embedding" in line for line in source.warnings)


def test_padding_rows_are_said(native):
    assert open_source(native("one")).left_out == ("68 rows of the embedding beyond its 700 tokens: padding, left out",)

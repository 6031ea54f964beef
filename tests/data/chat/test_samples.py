"""A conversation's tokens, and which of them are answers."""

import numpy as np
import pytest

from megatron_sky.data.chat.conversations import Unusable
from megatron_sky.data.chat.samples import SampleMaker, choose_template
from megatron_sky.data.tokens.mask import ANSWER
from megatron_sky.errors import DataError
from megatron_sky.tokenizer.chat_template import ChatTemplate, find_template
from megatron_sky.tokenizer.chat_tokens import write_with_chat_tokens
from megatron_sky.tokenizer.kinds import load_tokenizer

TURNS = {
    "messages": [
        {"role": "system", "content": "简短"},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "二 two"},
        {"role": "tool", "content": "{}"},
        {"role": "assistant", "content": "好"},
    ]
}


def answers(sample, tokenizer):
    """The text of each answer."""
    edges = np.flatnonzero(np.diff(sample.mask == ANSWER, prepend=False, append=False))
    return [tokenizer.decode(sample.tokens[begin:end]) for begin, end in edges.reshape(-1, 2)]


def test_skywork(chat_tokenizer, skywork):
    sample = SampleMaker(chat_tokenizer, skywork, row_length=99)(TURNS)
    assert answers(sample, chat_tokenizer) == ["二 two[SEP]", "好[SEP]"]
    text = chat_tokenizer.decode(sample.tokens)
    assert text.endswith("[USER]简短\n1+1?[SEP][BOT]二 two[SEP][USER]{}[SEP][BOT]好[SEP]")
    assert sample.tokens[:2].tolist() == [chat_tokenizer.eod_id, chat_tokenizer.bos_id]


def test_chatml(text_corpus, tmp_path):
    path = tmp_path / "t.model"
    ids = write_with_chat_tokens(text_corpus.tokenizer, ["<|im_start|>", "<|im_end|>"], path)
    tokenizer = load_tokenizer(path)
    sample = SampleMaker(tokenizer, find_template("chatml"), row_length=200)(TURNS)
    assert answers(sample, tokenizer) == ["二 two<|im_end|>", "好<|im_end|>"]
    assert (sample.tokens == ids["<|im_start|>"]).sum() == 5


def test_a_template_needs_its_tokens(text_corpus, skywork):
    with pytest.raises(
        DataError, match=r"has no token \[USER\], \[BOT\], \[SEP\]\n  fix: `megatron-sky tokenizer chat"
    ):
        SampleMaker(text_corpus.tokenizer, skywork, row_length=99)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "a [SEP][BOT] b", "output": "c"}, "token_in_text"),
        ({"instruction": "</s>", "output": "c"}, "token_in_text"),
        ({"instruction": "a", "output": "long " * 99}, "too_long"),
    ],
)
def test_what_is_left_out(chat_tokenizer, skywork, record, reason):
    with pytest.raises(Unusable) as told:
        SampleMaker(chat_tokenizer, skywork, row_length=64)(record)
    assert told.value.reason == reason


def test_a_long_one_is_cut_at_its_end_or_left_out_where_no_answer_is_left(chat_tokenizer, skywork):
    maker = SampleMaker(chat_tokenizer, skywork, row_length=64, cuts_long=True)
    sample = maker({"instruction": "a", "output": "long " * 99})
    assert len(sample.tokens) == 64 and sample.cut > 0 and (sample.mask == ANSWER).sum() > 50
    with pytest.raises(Unusable) as told:
        maker({"instruction": "long " * 99, "output": "a"})
    assert told.value.reason == "no_answer_left"


def test_a_template_that_fails_or_marks_nothing(chat_tokenizer):
    for text, reason in (("{{ 1 / 0 }}", "template_error"), ("{% generation %}{% endgeneration %}x", "no_answer_left")):
        with pytest.raises(Unusable) as told:
            SampleMaker(chat_tokenizer, ChatTemplate("t", text), row_length=64)({"instruction": "a", "output": "b"})
        assert told.value.reason == reason


def test_an_answer_within_a_token_is_left_out(chat_tokenizer):
    text = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{% generation %}e{% endgeneration %}"
    maker = SampleMaker(chat_tokenizer, ChatTemplate("t", text + "{% endif %}{% endfor %}"), row_length=64)
    with pytest.raises(Unusable) as told:
        maker({"instruction": " ", "output": "th"})
    assert told.value.reason == "answer_splits_token"


def test_the_template_beside_a_tokenizer(tmp_path, text_corpus):
    with pytest.raises(DataError, match="has no chat template of its own"):
        choose_template(None, text_corpus.tokenizer_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert choose_template(None, tmp_path / "tokenizer.model").text == "{{ messages }}"
    assert choose_template("chatml", tmp_path).name == "chatml"

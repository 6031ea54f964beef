"""Preference data in its common forms: the same question, two answers, and what is no pair."""

import numpy as np
import pytest

from megatron_sky.data.chat.build import ChatOptions, write_chat
from megatron_sky.data.chat.conversations import Unusable
from megatron_sky.data.chat.pairs import PairMaker, conversations_of
from megatron_sky.data.chat.samples import SampleMaker
from megatron_sky.data.tokens.indexed import IndexedTokens
from megatron_sky.data.tokens.mask import ANSWER, PADDING, REJECTED, TokenMask
from megatron_sky.data.tokens.verify import verify
from megatron_sky.errors import DataError

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "hi"), *[("assistant", t) for t in "ab"])
)
FORMS = {
    "texts": {"prompt": "hi", "chosen": "a", "rejected": "b"},
    "answers": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "whole": {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "no_prompt": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "alpaca": {"instruction": "hi", "input": "", "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_pair(form):
    assert conversations_of(FORMS[form]) == (1, [USER, GOOD], [USER, BAD])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "hi", "chosen": "a"}, "no_pair"),
        ([1], "no_pair"),
        ({"prompt": "hi", "chosen": "a", "rejected": "a"}, "same_answers"),
        ({"chosen": "a", "rejected": "b"}, "no_question"),
        ({"chosen": [GOOD, USER, GOOD], "rejected": [BAD, USER, BAD]}, "no_question"),
        ({"prompt": "hi", "chosen": "", "rejected": "b"}, "empty_answer"),
        ({"prompt": "hi", "chosen": [GOOD, USER], "rejected": "b"}, "ends_with_user"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "not_text"),
    ],
)
def test_what_is_no_pair(record, reason):
    with pytest.raises(Unusable) as told:
        conversations_of(record)
    assert told.value.reason == reason


def test_answers_within_the_question_are_context(chat_tokenizer, skywork):
    record = {"prompt": [USER, GOOD, {"role": "user", "content": "more"}], "chosen": "yes", "rejected": "no, never"}
    pair = PairMaker(SampleMaker(chat_tokenizer, skywork, row_length=64), row_length=64)(record)
    texts = [
        chat_tokenizer.decode(part[mask == kind].tolist())
        for part, mask, kind in zip(
            np.split(pair.tokens, [pair.first]), np.split(pair.mask, [pair.first]), (ANSWER, REJECTED), strict=True
        )
    ]
    assert "yes" in texts[0] and "a" not in texts[0] and "no, never" in texts[1]
    with pytest.raises(Unusable, match="too_long"):
        PairMaker(SampleMaker(chat_tokenizer, skywork, row_length=64), row_length=len(pair.tokens) - 1)(record)


def test_a_file_of_pairs_is_proved(chat_tokenizer, skywork, tmp_path):
    import json

    lines = [{"prompt": f"say {n}", "chosen": f"{n}!", "rejected": "no " * (1 + n % 7)} for n in range(40)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"prompt": "?"}])), encoding="utf-8")
    meta = write_chat([tmp_path / "in.jsonl"], tmp_path / "out", chat_tokenizer, skywork, ChatOptions(64, pairs=True))
    assert meta.documents.written == 40 and meta.rejected == {"no_pair": 1}
    proved = verify(tmp_path / "out", tokenizer=chat_tokenizer)
    assert proved.num_documents == 80 and proved.mask.rejected_tokens == meta.mask.rejected_tokens > 0
    mask = TokenMask(tmp_path / "out")
    with IndexedTokens(tmp_path / "out") as pair:
        for number in range(80):
            flags = mask.read(pair.document_offset(number), len(pair.document(number)))
            assert set(flags.tolist()) - {0, PADDING} == {REJECTED if number % 2 else ANSWER}
    with pytest.raises(DataError, match="need --pairs"):
        write_chat([tmp_path / "in.jsonl"], tmp_path / "other", chat_tokenizer, skywork, ChatOptions(64))

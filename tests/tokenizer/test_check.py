"""The rules that a tokenizer is tried by: each holds of ours, and each notices what breaks it."""

import pytest

from megatron_sky.tokenizer.check import check_tokenizer


class Changed:
    """A tokenizer with one thing changed."""

    def __init__(self, tokenizer, **changes):
        self._tokenizer, self._changes = tokenizer, changes

    def __getattr__(self, name: str):
        changes = self.__dict__["_changes"]
        return changes[name] if name in changes else getattr(self.__dict__["_tokenizer"], name)


def broken_rules(tokenizer) -> set[str]:
    return {check.rule for check in check_tokenizer(tokenizer, trials=20) if not check.holds}


def test_ours_keeps_to_all(text_corpus):
    checks = check_tokenizer(text_corpus.tokenizer, ["The cat sat.", "猫坐着。"], trials=50)
    assert all(check.holds for check in checks)
    assert [check.rule for check in checks if "per token" in check.rule] == [
        "characters per token, en",
        "characters per token, zh",
    ]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"decode": lambda ids: "x"}, "every valid UTF-8 text comes back"),
        ({"vocab_size": 300}, "no id beyond the size"),
        ({"eod_id": 10**6}, "no id beyond the size"),
    ],
)
def test_what_breaks_a_rule_is_noticed(changes, rule, text_corpus):
    assert rule in broken_rules(Changed(text_corpus.tokenizer, **changes))


def test_a_tokenizer_without_special_tokens_is_tried_too(text_corpus):
    bare = Changed(text_corpus.tokenizer, control_tokens={}, reserved_tokens={}, special_texts=())
    assert "every valid UTF-8 text comes back" not in broken_rules(bare)


def test_digits_of_which_a_token_holds_two(text_corpus):
    ours = text_corpus.tokenizer
    twice = Changed(ours, decode=lambda ids: "12" if list(ids) == [300] else ours.decode(ids))
    assert "digits are single" in broken_rules(twice)

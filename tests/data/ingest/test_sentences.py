"""Documents cut into sentences, in both scripts, without losing a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.data.ingest.sentences import SentenceSplitter, learn_punkt

PUNKT = learn_punkt(["It rains. It pours.", "He saw Dr. Li. Dr. Li saw him."])


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It rains. It pours.", ["It rains.", "It pours."]),
        ("今天下雨。明天晴！", ["今天下雨。", "明天晴！"]),
        ("他说：“走吧。”然后走了。", ["他说：“走吧。”", "然后走了。"]),
        ("真的吗？！是。", ["真的吗？！", "是。"]),
        ("It rains. 今天下雨。It pours.", ["It rains.", "今天下雨。", "It pours."]),
        ("no end", ["no end"]),
        ("", []),
        ("   ", []),
    ],
)
def test_sentences(text, sentences):
    assert SentenceSplitter(PUNKT)(text) == sentences


@given(st.text(alphabet="ab .!?\n。！？”今天", max_size=60))
def test_kept_white_space_joins_to_the_text(text):
    assert "".join(SentenceSplitter(PUNKT, keep_newlines=True)(text)) == text


@given(st.text(alphabet="ab .!?\n。！？”今天", max_size=60))
def test_without_it_every_sentence_is_bare(text):
    parts = SentenceSplitter(PUNKT)(text)
    assert all(part and part == part.strip() for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_punkt_learns_from_the_first_texts_alone(monkeypatch):
    from megatron_sky.data.ingest import sentences

    monkeypatch.setattr(sentences, "TRAIN_CHARACTERS", 10)
    taken = []

    def texts():
        for text in ("one two three.", "four five.", "six."):
            taken.append(text)
            yield text

    learn_punkt(texts())
    assert taken == ["one two three."]

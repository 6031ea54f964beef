import json
from pathlib import Path

import pytest

from megatron_sky.corpus.language import keep_paragraphs, language_of, language_of_document, paragraph_languages

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ENGLISH = "The quick brown fox was seen by the people who have been there, and it is not clear what they think of it."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        ("我们在北京看到了很多人，他们都在等公共汽车。", "zh"),
        ("使用 Python 的 requests 库可以发送 HTTP 请求", "zh"),
        ("これは日本語の文章です。漢字も使われています。", "other"),
        ("한국어로 된 문장입니다.", "other"),
        ("Der schnelle braune Fuchs springt über den faulen Hund und läuft in den Wald hinein.", "other"),
        ("Le renard brun rapide saute par-dessus le chien paresseux dans la forêt.", "other"),
        ("12345 67890", "other"),
    ],
)
def test_language_of(text, language):
    assert language_of(text) == language


def test_a_document_has_the_language_of_most_of_its_text():
    foreign = (
        "Der Wind und die Sonne stritten sich, wer von ihnen beiden wohl der Stärkere wäre, als jemand kam, der warm "
        "gekleidet war"
    )
    text = f"{ENGLISH}\n{foreign}\n{ENGLISH}\nshort"
    assert language_of_document(text) == "en"
    assert [language for _, language in paragraph_languages(text)] == ["en", "other", "en", None]
    assert keep_paragraphs(text, ("en",)) == f"{ENGLISH}\n{ENGLISH}\nshort"


@pytest.mark.parametrize(("name", "language"), [("zh_general.jsonl", "zh"), ("pt_train.jsonl", "en")])
def test_99_of_100_real_paragraphs_are_right(name, language):
    if not (DATA / name).exists():
        pytest.skip("the real texts are not here")
    with open(DATA / name, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(1000), file, strict=False)]
    long = [paragraph for text in texts for paragraph in text.split("\n") if len(paragraph) >= 100]
    assert sum(language_of(paragraph) == language for paragraph in long) >= 0.99 * len(long)

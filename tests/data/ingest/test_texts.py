import gzip
import json

import pytest

from megatron_sky.data.ingest.texts import sample_texts


def packed(path, texts):
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


ENGLISH = [f"{number} The cook waits by the river." for number in range(2000)]
CHINESE = [f"{number} 渔民在河边修补渔网,今天下雨。" for number in range(2000)]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("order", ["two files", "one after the other", "in turn"])
def test_a_sample_is_of_all_the_input_however_it_is_packed(tmp_path, ending, order):
    if order == "two files":
        inputs = [packed(tmp_path / f"en.{ending}", ENGLISH), packed(tmp_path / f"zh.{ending}", CHINESE)]
    else:
        turns = [text for pair in zip(ENGLISH, CHINESE, strict=True) for text in pair]
        inputs = [packed(tmp_path / f"both.{ending}", turns if order == "in turn" else ENGLISH + CHINESE)]
    found = list(sample_texts(inputs, max_bytes=8000))
    assert found == list(sample_texts(inputs, max_bytes=8000))
    assert 2000 < sum(map(len, found)) <= 8000
    numbers = [[int(text.split()[0]) for text in found if ("渔" in text) == chinese] for chinese in (False, True)]
    assert len(numbers[0]) == pytest.approx(len(numbers[1]), abs=3)
    for each in numbers:
        assert len(each) > 30
        gaps = [after - before for before, after in zip([0, *each], [*each, 2000], strict=True)]
        assert max(gaps) < 3 * 2000 / len(each)


def test_all_is_taken_where_there_is_room(tmp_path):
    path = packed(tmp_path / "a.jsonl.gz", [*ENGLISH, ["two", "sentences"]])
    assert list(sample_texts([path])) == [*ENGLISH, "two", "sentences"]


def test_a_list_of_sentences_counts_with_its_characters(tmp_path):
    path = packed(tmp_path / "a.jsonl.gz", [["x" * 90, "y" * 10]] * 100)
    assert sum(map(len, sample_texts([path], max_bytes=1000))) <= 1000


def test_one_long_text_is_taken_whole(tmp_path):
    path = packed(tmp_path / "a.jsonl.gz", ["x" * 5000])
    assert list(sample_texts([path], max_bytes=1000)) == ["x" * 5000]

"""Domains from files: names, keys, cuts, and what is refused."""

import gzip
import json

import pytest

from megatron_sky.errors import ConfigError, DataError
from megatron_sky.evaluate.documents import parse_data, read_domain


def write(path, *lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_names_and_files(tmp_path):
    odd = write(tmp_path / "a=b.jsonl", {"text": "x"})
    given = ["news=one.jsonl", "news=two.jsonl", "data/code.jsonl.gz", odd]
    assert parse_data(given) == {"news": ["one.jsonl", "two.jsonl"], "code": ["data/code.jsonl.gz"], "a=b": [odd]}
    with pytest.raises(ConfigError, match="NAME=FILE"):
        parse_data(["news="])
    with pytest.raises(ConfigError, match="together"):
        parse_data(["average=one.jsonl"])


@pytest.mark.parametrize(
    "given",
    [
        ["en/test.jsonl", "zh/test.jsonl"],
        ["test=en/test.jsonl", "zh/test.jsonl"],
        ["zh/test.jsonl", "test=en/test.jsonl"],
        ["test.jsonl", "test.jsonl.gz"],
    ],
)
def test_files_of_one_name_are_not_put_together_unasked(given):
    with pytest.raises(ConfigError, match=r"(?s)two domains would be called test: .*NAME=FILE") as caught:
        parse_data(given)
    assert all(each.removeprefix("test=") in str(caught.value) for each in given)


def test_documents_are_cut_counted_and_joined(tmp_path):
    path = write(
        tmp_path / "qa.jsonl",
        {"question": "1 + 1?", "answer": "2"},
        {"question": "", "answer": " "},
        {"question": "颜色？", "answer": "红"},
    )
    domain = read_domain("qa", [path], keys=("question", "answer"), max_characters=4)
    assert [each.whole for each in domain.documents] == ["1 + 1? 2", "颜色？ 红"]
    assert [each.text for each in domain.documents] == ["1 + ", "颜色？ "]
    assert domain.empty == 1 and [each.num_bytes for each in domain.documents] == [4, 10]
    assert read_domain("qa", [path], keys=("answer",), max_documents=1).documents[0].text == "2"


def test_compressed_files_and_folders(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n'))
    write(tmp_path / "set/b.jsonl", {"text": "two"})
    domain = read_domain("set", [str(tmp_path / "set")])
    assert [each.text for each in domain.documents] == ["one", "two"] and len(domain.files) == 2


def test_a_domain_without_a_text_is_refused(tmp_path):
    path = write(tmp_path / "empty.jsonl", {"text": ""}, {"text": "  "}, {"body": "x"})
    with pytest.raises(DataError, match="domain e: no document with text") as caught:
        read_domain("e", [path])
    assert "2 empty documents and 1 lines" in str(caught.value) and "--key" in str(caught.value)
    with pytest.raises(DataError, match="names no file"):
        read_domain("e", [str(tmp_path / "none.jsonl")])

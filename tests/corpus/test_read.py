import gzip
import json

import pytest

from megatron_sky.corpus.ledger import read_stage
from megatron_sky.corpus.plan import Piece, Unit
from megatron_sky.corpus.read import ReadUnits, in_domains
from megatron_sky.corpus.recipe import CorpusSource, ReadConfig


@pytest.fixture
def read(tmp_path):
    def documents(kind, path, *, ranges=None, source=None, **config):
        source = CorpusSource(name="web", kind=kind, paths=(str(path),), **(source or {}))
        ranges = ranges or [(0, path.stat().st_size)]
        units = tuple(Unit("web", (Piece(str(path), start, end),)) for start, end in ranges)
        step = ReadUnits(tmp_path / "out", units, (source,), ReadConfig(**config), True)
        documents = [document for rank in range(len(units)) for document in step.run(None, rank)]
        return documents, read_stage(tmp_path / "out", "read")["web"]

    return documents


def test_every_line_is_a_document_or_has_its_reason(read, tmp_path):
    lines = [b'{"text": "one", "url": "https://a.test/1"}', b"", b"{broken", b'{"text": 3}', b'{"text": " "}', b"\xff"]
    lines += [
        b'{"text": "' + b"x" * 99 + b'"}',
        b'{"text": "two", "url": "https://sub.bad.test/"}',
        b'{"text": "\\ud800"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, account = read("jsonl", tmp_path / "a.jsonl", max_document_bytes=90, blocked_domains=["bad.test"])
    assert [document.text for document in documents] == ["one", "?"] and documents[0].metadata["place"] == 0
    rules = {rule: amount.documents for rule, amount in account.dropped.items()}
    assert rules == {"not_json": 1, "no_text": 1, "empty": 1, "invalid_utf8": 1, "too_large": 1, "blocked_domain": 1}
    assert account.given.documents == 8


def test_ranges_of_a_file_have_each_line_once(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * (i % 7 + 1)}) + "\n" for i in range(50)))
    size = path.stat().st_size
    whole, _ = read("jsonl", path)
    for width in (1 + size // 2, 40, 13):
        ranges = [(start, min(size, start + width)) for start in range(0, size, width)]
        parts, _ = read("jsonl", path, ranges=ranges)
        assert [(part.text, part.id) for part in parts] == [(one.text, one.id) for one in whole]


def test_a_file_that_is_cut_off_gives_what_it_has(read, tmp_path):
    lines = "".join(json.dumps({"text": f"{i} {hash(str(i)) % 10**15}"}) + "\n" for i in range(2000))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines.encode())[:-3000])
    documents, account = read("jsonl", path)
    assert 0 < len(documents) < 2000 and account.dropped["broken_file"].documents == 1


def test_pages_and_broken_archives(read, tmp_path):
    (tmp_path / "a.html").write_bytes('<meta charset="gbk"><p>中文</p>'.encode("gbk"))
    documents, _ = read("html", tmp_path / "a.html")
    assert "中文" in documents[0].text and documents[0].metadata["is_html"]
    (tmp_path / "a.warc").write_bytes(b"this is no archive")
    assert read("warc", tmp_path / "a.warc")[1].dropped["broken_record"].documents == 1
    (tmp_path / "a.parquet").write_bytes(b"this is no table")
    assert read("parquet", tmp_path / "a.parquet")[1].dropped["broken_file"].documents == 1
    (tmp_path / "a.py").write_bytes(b"\x00\x01 binary")
    assert read("code", tmp_path / "a.py")[1].dropped["binary"].documents == 1


def test_domains():
    assert in_domains("https://a.b.test/x", {"b.test"}) and not in_domains("https://ab.test/x", {"b.test"})
    assert not in_domains("", {"b.test"}) and not in_domains("https://[", {"b.test"})


@pytest.mark.parametrize("packed", [False, True])
def test_pairs_of_columns_fields_and_files(read, tmp_path, packed):
    pairs = [("你好，世界。", "Hello, world."), ("他今天来了。", "He came {zh} today."), ("早", "Morning")]

    def write(name, lines):
        content = "".join(f"{line}\n" for line in lines).encode()
        path = tmp_path / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(content) if packed else content)
        return path

    write("b.en", [en for _, en in pairs])
    given = {
        write("a.tsv", [f"x\t{en}\t{zh}\r" for zh, en in pairs] + ["", "x\tone"]): {"columns": (3, 2)},
        write("a.jsonl", [json.dumps({"t": {"zh": zh, "en": en}}) for zh, en in pairs] + ['{"t": 3}']): {
            "zh_key": "t.zh",
            "en_key": "t.en",
        },
        write("b.zh", [zh for zh, _ in pairs] + ["多"]): {},
    }
    for path, keys in given.items():
        documents, account = read("parallel", path, source={**keys, "templates": ["中：{zh} 英：{en}", "{en}\n{zh}\n"]})
        wanted = [{f"中：{zh} 英：{en}", f"{en}\n{zh}\n"} for zh, en in pairs]
        assert all(one.text in some for one, some in zip(documents, wanted, strict=True))
        assert documents[0].metadata["language"] == "zh-en" and account.given.documents == 4
        rules = {"broken_file"} if ".zh" in path.name else {"no_pair"}
        assert account.dropped.keys() == rules
    with open(tmp_path / ("b.zh" + ".gz" * packed), "r+b") as file:
        file.truncate(20)
    _, account = read("parallel", tmp_path / ("b.zh" + ".gz" * packed))
    assert account.dropped["broken_file"].documents == 1

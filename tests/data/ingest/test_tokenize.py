import dataclasses
import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sky.data.ingest import inputs as inputs_module
from megatron_sky.data.ingest import tokenize as tokenize_module
from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path, idx_path
from megatron_sky.data.tokens.merge import merge
from megatron_sky.data.tokens.meta import read_meta
from megatron_sky.data.tokens.verify import verify
from megatron_sky.errors import DataError, MissingDependency
from tests.data import helpers
from tests.data.helpers import killed_at, megatron_datasets, read_texts

TOOLS = Path(__file__).resolve().parents[3] / "tools"


def write_lines(path, texts, key="text"):
    path.write_text("".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def read_pair(prefix):
    return bin_path(prefix).read_bytes(), idx_path(prefix).read_bytes()


def megatrons_pair(prefix, texts, tokenizer, append_eod=True):
    """The pair as Megatron's builder writes it, fed document by document as its preprocessing does."""
    import torch

    indexed = megatron_datasets("indexed_dataset")
    builder = indexed.IndexedDatasetBuilder(
        str(bin_path(prefix)), dtype=indexed.DType.optimal_dtype(tokenizer.vocab_size)
    )
    for text in texts:
        ids = tokenizer.encode(text)
        if ids and append_eod:
            ids.append(tokenizer.eod_id)
        builder.add_document(torch.tensor(ids, dtype=torch.int64), [len(ids)] if ids else [])
    builder.finalize(str(idx_path(prefix)))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 2 KB in parts of 700 bytes, so that small files have many."""
    monkeypatch.setattr(inputs_module, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(inputs_module, "PART_BYTES", 700)
    monkeypatch.setattr(tokenize_module, "BLOCK_BYTES", 2048)


TEXTS = ["one two", "", "三四五。", "a</s>b <s>", "  spaces\n\n", "x" * 5000, "0123 45", "end"]


@pytest.mark.parametrize("append_eod", [True, False])
@pytest.mark.parametrize("fast", [None, False])
def test_bytes_are_megatrons(text_corpus, tmp_path, small_blocks, append_eod, fast):
    texts = TEXTS + read_texts(text_corpus.files["test"]["zh_web"])
    path = write_lines(tmp_path / "a.jsonl", texts)
    options = TokenizeOptions(append_eod=append_eod, fast=fast)
    (meta,) = tokenize_files([path], tmp_path / "ours", text_corpus.tokenizer, options)
    megatrons_pair(tmp_path / "theirs", texts, text_corpus.tokenizer, append_eod)
    assert read_pair(tmp_path / "ours") == read_pair(tmp_path / "theirs")
    assert meta.documents.read == len(texts) and meta.documents.empty == 1 and meta.documents.rejected == 0
    assert verify(tmp_path / "ours", tokenizer=text_corpus.tokenizer).meta == meta


def test_every_kind_of_file_gives_the_same_pair(text_corpus, tmp_path, small_blocks):
    texts = TEXTS[:1] + read_texts(text_corpus.files["test"]["en_web"])
    plain = write_lines(tmp_path / "a.jsonl", texts)
    whole = plain.read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(whole[:9000]) + gzip.compress(whole[9000:]))
    inputs = [plain, tmp_path / "b.jsonl.gz"]
    if importlib.util.find_spec("zstandard"):
        import zstandard

        pack = zstandard.ZstdCompressor().compress
        (tmp_path / "c.jsonl.zst").write_bytes(pack(whole[:9000]) + pack(whole[9000:]))
        inputs.append(tmp_path / "c.jsonl.zst")
    if importlib.util.find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), tmp_path / "d.parquet")
        inputs.append(tmp_path / "d.parquet")
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:04}.txt").write_text(text, encoding="utf-8")
    inputs.append(folder)
    pairs = []
    for number, each in enumerate(inputs):
        tokenize_files([each], tmp_path / f"out{number}", text_corpus.tokenizer, TokenizeOptions())
        pairs.append(read_pair(tmp_path / f"out{number}"))
    assert all(pair == pairs[0] for pair in pairs)


BAD_LINES = {
    b"no json": "not_json",
    b'{"text": "cut': "not_json",
    b'["text"]': "not_an_object",
    b"17": "not_an_object",
    b'{"other": "x"}': "no_key",
    b'{"text": 5}': "not_text",
    b'{"text": null}': "not_text",
    b'{"text": ["a", 1]}': "not_text",
    b'{"text": "a", "text": "b"}': "duplicate_key",
    b'{"te\\u0078t": "a", "text": "b"}': "duplicate_key",
    b'{"text": "\xff\xfe"}': "invalid_utf8",
    b'{"text": "\\ud800"}': "invalid_utf8",
    b'{"text": "a\\u0000b"}': "nul",
    b'{"text": "' + b"y" * 4000 + b'"}': "too_long",
}


def test_bad_lines_are_counted_and_kept_with_their_place(text_corpus, tmp_path, small_blocks):
    good = [json.dumps({"text": f"good {number}"}).encode() for number in range(200)]
    lines = list(good)
    for place, bad in enumerate(BAD_LINES):
        lines.insert(5 + 9 * place, bad)
    expected = {lines.index(bad) + 1: reason for bad, reason in BAD_LINES.items()}
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, b"", b"  "]))
    options = TokenizeOptions(max_document_bytes=3000)
    (meta,) = tokenize_files([tmp_path / "a.jsonl"], tmp_path / "out", text_corpus.tokenizer, options)
    kept = [json.loads(line) for line in (tmp_path / "out.rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {each["line"]: each["reason"] for each in kept} == expected
    assert all(each["file"] == str(tmp_path / "a.jsonl") for each in kept)
    assert meta.documents == dataclasses.replace(meta.documents, read=214, written=200, empty=0, rejected=14)
    assert sum(meta.rejected.values()) == 14 and meta.notes["byte_order_marks"] == 1
    assert meta.notes["blank_lines"] == 2 and meta.notes["crlf_lines"] > 200
    megatrons_pair(tmp_path / "theirs", [json.loads(line)["text"] for line in good], text_corpus.tokenizer)
    assert read_pair(tmp_path / "out") == read_pair(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("lines", "told"), [(b'{"body": "x"}\n' * 3, "of 3 documents none has text (no_key 3)"), (b"", "of 0 documents")]
)
def test_a_job_of_which_nothing_comes_fails_and_leaves_no_pair(lines, told, text_corpus, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines)
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            tokenize_files([tmp_path / "a.jsonl"], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
        assert told in str(caught.value) and ("--key" in str(caught.value)) == bool(lines)
    left = {path.name for path in tmp_path.iterdir()} - {"a.jsonl"}
    assert left == ({"out.rejects.jsonl"} if lines else set())
    tokenize_files([tmp_path / "a.jsonl"], tmp_path / "part", text_corpus.tokenizer, TokenizeOptions(shard=(0, 1)))


def test_a_fast_encoder_that_is_missing_is_told_before_workers_start(text_corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    write_lines(tmp_path / "a.jsonl", ["x"])
    with pytest.raises(MissingDependency, match="gigatoken"):
        tokenize_files(
            [tmp_path / "a.jsonl"], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions(fast=True, workers=2)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("bad", BAD_LINES)
def test_strict_stops_at_the_first_and_names_it(text_corpus, tmp_path, bad):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' * 3 + bad + b"\n")
    options = TokenizeOptions(strict=True, max_document_bytes=3000)
    with pytest.raises(DataError, match=rf"a\.jsonl, line 4: .*\({BAD_LINES[bad]}\)"):
        tokenize_files([tmp_path / "a.jsonl"], tmp_path / "out", text_corpus.tokenizer, options)
    assert not bin_path(tmp_path / "out").exists() and not idx_path(tmp_path / "out").exists()


def test_lists_of_sentences_are_sequences(text_corpus, tmp_path):
    write_lines(tmp_path / "a.jsonl", [["one.", "", "two."], "three"])
    tokenize_files([tmp_path / "a.jsonl"], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    with IndexedTokens(tmp_path / "out") as pair:
        assert pair.num_sequences == 3 and pair.num_documents == 2 and pair.bounds().tolist() == [0, 2, 3]
        ids = (
            text_corpus.tokenizer.encode("one.") + text_corpus.tokenizer.encode("two.") + [text_corpus.tokenizer.eod_id]
        )
        assert pair.document(0).tolist() == ids


def test_sentences_are_split_in_both_languages(text_corpus, tmp_path):
    texts = [
        "The cook waits. Dr. Hale is late! Why?",
        "今天下雨。你去吗？“不去。”他说。",
        "mixed line. 然后呢？好。",
    ] * 30
    write_lines(tmp_path / "a.jsonl", texts)
    options = TokenizeOptions(split_sentences=True, append_eod=False)
    tokenize_files([tmp_path / "a.jsonl"], tmp_path / "out", text_corpus.tokenizer, options)
    with IndexedTokens(tmp_path / "out") as pair:
        assert pair.num_documents == 90 and pair.num_sequences > 200
        first = int(pair.pointers(pair.bounds()[1], 1)[0]) // pair.dtype.itemsize
        lengths = pair.lengths(int(pair.bounds()[1]), int(pair.bounds()[2] - pair.bounds()[1])).tolist()
        sentences, at = [], first
        for length in lengths:
            sentences.append(text_corpus.tokenizer.decode(pair.read(at, length).tolist()))
            at += length
        assert sentences == ["今天下雨。", "你去吗？", "“不去。”", "他说。"]


def test_several_keys_give_a_pair_each(text_corpus, tmp_path):
    lines = [{"q": f"question {n}", "a": "" if n == 2 else f"答{n}"} for n in range(5)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metas = tokenize_files(
        [tmp_path / "a.jsonl"], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions(keys=("q", "a"))
    )
    assert [meta.documents.empty for meta in metas] == [0, 1]
    for key in "qa":
        assert verify(tmp_path / f"out_{key}").num_documents == 5


def test_an_interrupted_run_goes_on_where_it_stopped(text_corpus, tmp_path, small_blocks, monkeypatch):
    path = text_corpus.files["train"]["stem"]
    tokenize_files([path], tmp_path / "whole", text_corpus.tokenizer, TokenizeOptions())
    monkeypatch.setattr(tokenize_module, "_SAVE_SECONDS", 0.0)
    encoded = []
    real = tokenize_module.BlockEncoder.__call__

    def stop_after(limit):
        def encode(self, block):
            if len(encoded) == limit:
                raise KeyboardInterrupt
            encoded.append(block.start)
            return real(self, block)

        monkeypatch.setattr(tokenize_module.BlockEncoder, "__call__", encode)

    for limit in (3, 4, 9):
        stop_after(limit)
        with pytest.raises(KeyboardInterrupt):
            tokenize_files([path], tmp_path / "parts", text_corpus.tokenizer, TokenizeOptions())
        assert not bin_path(tmp_path / "parts").exists()
    with open(tmp_path / "parts.bin.tmp", "ab") as file:
        file.write(b"what a killed process left")
    stop_after(10**9)
    (meta,) = tokenize_files([path], tmp_path / "parts", text_corpus.tokenizer, TokenizeOptions())
    assert encoded[:9] == [0, 700, 1400, 2048, 2048, 2748, 3448, 4096, 4796]  # a block begins anew, and no other one
    assert encoded[9:] == sorted(set(encoded[9:])) and encoded[9] == 4096
    assert read_pair(tmp_path / "parts") == read_pair(tmp_path / "whole") and meta == read_meta(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == sorted(
        f"{name}.{ending}" for name in ("parts", "whole") for ending in ("bin", "idx", "meta.json")
    )
    tokenize_files([path], tmp_path / "parts", text_corpus.tokenizer, TokenizeOptions())
    assert len(encoded) == len(set(encoded)) + 3


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_killed_at_any_point_of_its_end_goes_on(text_corpus, tmp_path, monkeypatch, overwrite):
    lines = [{"q": f"question {n}", "a": "" if n == 2 else f"答{n}"} for n in range(5)] + [{"q": "no answer"}]
    write = (tmp_path / "a.jsonl").write_text
    write("".join(json.dumps(line) + "\n" for line in lines))
    options = TokenizeOptions(keys=("q", "a"), fast=False, overwrite=overwrite)

    def work(folder="whole"):
        return tokenize_files([tmp_path / "a.jsonl"], tmp_path / folder / "out", text_corpus.tokenizer, options)

    encoded = []
    real = tokenize_module.BlockEncoder.__call__
    monkeypatch.setattr(
        tokenize_module.BlockEncoder, "__call__", lambda self, block: encoded.append(block) or real(self, block)
    )
    expected = work()
    before = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    step = 1
    while True:
        folder = f"killed{step}"
        (tmp_path / folder).mkdir()
        if overwrite:  # files of another job are replaced
            for name in ("out_q", "out_a"):
                helpers.write_pair(tmp_path / folder / name, [[1, 2], [3]])
        if not killed_at(step, lambda folder=folder: work(folder)):
            break
        saved = (tmp_path / folder / "out.progress.json").exists()
        encoded.clear()
        assert work(folder) == expected
        assert bool(encoded) != saved, step
        assert {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} == before
        step += 1
    assert step > 12


def test_a_running_job_keeps_its_files_when_another_wants_the_name(text_corpus, tmp_path, small_blocks, monkeypatch):
    first, second = text_corpus.files["test"]["stem"], text_corpus.files["test"]["code"]
    tokenize_files([first], tmp_path / "alone", text_corpus.tokenizer, TokenizeOptions())
    monkeypatch.setattr(tokenize_module, "_SAVE_SECONDS", 0.0)
    real = tokenize_module.BlockEncoder.__call__
    refused = []

    def meanwhile(self, block):
        if block.start and not refused:
            refused.append(block)
            with pytest.raises(DataError, match="another process is writing these files"):
                tokenize_files([second], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
        return real(self, block)

    monkeypatch.setattr(tokenize_module.BlockEncoder, "__call__", meanwhile)
    tokenize_files([first], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    assert refused and read_pair(tmp_path / "out") == read_pair(tmp_path / "alone")


def test_another_jobs_remains_are_not_gone_on_with(text_corpus, tmp_path, small_blocks, monkeypatch):
    first, second = text_corpus.files["test"]["stem"], text_corpus.files["test"]["code"]
    real = tokenize_module.BlockEncoder.__call__

    def stop(self, block):
        if block.start:
            raise KeyboardInterrupt
        return real(self, block)

    monkeypatch.setattr(tokenize_module, "_SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(tokenize_module.BlockEncoder, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            tokenize_files([first], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    tokenize_files([second], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    tokenize_files([second], tmp_path / "alone", text_corpus.tokenizer, TokenizeOptions())
    assert read_pair(tmp_path / "out") == read_pair(tmp_path / "alone")


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_merge_to_the_unsharded_pair(text_corpus, tmp_path, small_blocks, count):
    files = [text_corpus.files["test"]["stem"], text_corpus.files["test"]["zh_web"]]
    (whole,) = tokenize_files(files, tmp_path / "whole", text_corpus.tokenizer, TokenizeOptions())
    shards = []
    for index in range(count):
        shards.append(tmp_path / f"part{index}")
        tokenize_files(files, shards[-1], text_corpus.tokenizer, TokenizeOptions(shard=(index, count)))
    merged = merge(shards, tmp_path / "merged")
    assert read_pair(tmp_path / "merged") == read_pair(tmp_path / "whole")
    assert dataclasses.replace(merged, job=whole.job) == whole


def test_line_numbers_in_a_shard_are_the_files(text_corpus, tmp_path, small_blocks):
    lines = [json.dumps({"text": f"line {number} " + "x" * (number % 90)}) for number in range(400)]
    lines[350] = "bad"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for index in range(4):
        options = TokenizeOptions(shard=(index, 4))
        (meta,) = tokenize_files([tmp_path / "a.jsonl"], tmp_path / f"p{index}", text_corpus.tokenizer, options)
        if meta.documents.rejected:
            assert json.loads((tmp_path / f"p{index}.rejects.jsonl").read_text())["line"] == 351


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=60),
    block=st.integers(1, 900),
    end=st.sampled_from(["", "\n"]),
)
def test_blocks_of_any_size_give_each_line_once(tmp_path_factory, sizes, block, end):
    from megatron_sky.data.ingest.documents import parse_block

    path = tmp_path_factory.mktemp("blocks") / "a.jsonl"
    texts = [f"{number}" + "z" * size for number, size in enumerate(sizes)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + end)
    size = path.stat().st_size
    found, lines, long = [], 0, 0
    for start in range(0, size, block):
        cut = inputs_module.Block(str(path), start, min(size, start + block), first_of_file=start == 0)
        parsed = parse_block(cut, ("text",), 300)
        found += [document[0] for document in parsed.documents]
        lines += parsed.lines
        long += sum(reject.reason == "too_long" for reject in parsed.rejects)
    assert found == [text for text in texts if len(json.dumps({"text": text})) <= 300]
    assert lines == len(texts) == len(found) + long


def test_a_document_beyond_the_limit_is_rejected_in_every_kind_of_file(text_corpus, tmp_path, small_blocks):
    lines = b'{"text": "a"}\n{"text": "' + b"y" * 90_000 + b'"}\n{"text": "b"}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    for name in ("a.jsonl", "b.jsonl.gz"):
        options = TokenizeOptions(max_document_bytes=5000)
        (meta,) = tokenize_files([tmp_path / name], tmp_path / name[0], text_corpus.tokenizer, options)
        assert meta.rejected == {"too_long": 1} and meta.documents.written == 2
        assert json.loads((tmp_path / f"{name[0]}.rejects.jsonl").read_text())["line"] == 2
    (tmp_path / "c.txt").write_text("y" * 90_000)
    (tmp_path / "d.txt").write_text("y")
    files = [tmp_path / "c.txt", tmp_path / "d.txt"]
    (meta,) = tokenize_files(files, tmp_path / "c", text_corpus.tokenizer, options)
    assert meta.rejected == {"too_long": 1} and meta.documents.written == 1


def test_worker_processes_give_the_same(text_corpus, tmp_path):
    files = sorted(text_corpus.files["train"].values())
    one = tokenize_files(files, tmp_path / "one", text_corpus.tokenizer, TokenizeOptions())
    two = tokenize_files(files, tmp_path / "two", text_corpus.tokenizer_path, TokenizeOptions(workers=2))
    assert one == two and read_pair(tmp_path / "one") == read_pair(tmp_path / "two")


def test_a_killed_worker_is_told_and_leaves_no_pair(text_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_module, "encode_in_worker", helpers.die)
    with pytest.raises(DataError, match="a worker process was killed"):
        tokenize_files(
            [text_corpus.files["test"]["stem"]],
            tmp_path / "out",
            text_corpus.tokenizer_path,
            TokenizeOptions(workers=1),
        )
    assert not bin_path(tmp_path / "out").exists()


def test_a_full_disk_is_told_and_leaves_no_pair(text_corpus, tmp_path):
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from megatron_sky.tokenizer.kinds import load_tokenizer\n"
        "from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files\n"
        f"tokenize_files([{str(text_corpus.files['train']['stem'])!r}], {str(tmp_path / 'out')!r}, "
        f"load_tokenizer({str(text_corpus.tokenizer_path)!r}), TokenizeOptions())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "DataError" in done.stderr and "File too large" in done.stderr
    assert not bin_path(tmp_path / "out").exists() and not idx_path(tmp_path / "out").exists()


def test_files_in_the_way_and_missing_inputs_are_named(text_corpus, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ["x"])
    (tmp_path / "out.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"out\.bin exists already"):
        tokenize_files([path], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())
    tokenize_files([path], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions(overwrite=True))
    for given_, message in ((tmp_path / "no*.jsonl", "names no file"), (tmp_path / "out.bin", "unknown kind")):
        with pytest.raises(DataError, match=message):
            tokenize_files([given_], tmp_path / "new", text_corpus.tokenizer, TokenizeOptions())
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    with pytest.raises(DataError, match=r"broken\.jsonl\.gz: broken \.gz file"):
        tokenize_files([tmp_path / "broken.jsonl.gz"], tmp_path / "new", text_corpus.tokenizer, TokenizeOptions())


def test_two_writers_of_one_name_are_kept_apart(text_corpus, tmp_path):
    from megatron_sky.data.tokens.writer import IndexedWriter

    path = write_lines(tmp_path / "a.jsonl", ["x"])
    with IndexedWriter(tmp_path / "out", np.uint16) as writer:
        writer.add_document(np.array([1]))
        with pytest.raises(DataError, match="another process is writing"):
            tokenize_files([path], tmp_path / "out", text_corpus.tokenizer, TokenizeOptions())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--tokenizer-type GPT2BPETokenizer --vocab-file v.json --merge-file m.txt", "T('v.json', 'm.txt').save("),
        ("--tokenizer-type GPT2BPETokenizer --vocab-file v.json", "T('v.json', 'merges.txt').save("),
        ("--tokenizer-type BertWordPieceCase --vocab-file v.txt", "BertWordPieceTokenizer as T; T('v.txt').save("),
        (
            "--tokenizer-type TikTokenizer --tokenizer-model a --tiktoken-pattern v2",
            "the pattern in NAME.tiktoken.json",
        ),
        ("--tokenizer-type NullTokenizer --vocab-size 100", "no tokenizer (of NullTokenizer)"),
        ("", "fix: give --tokenizer-model"),
    ],
)
def test_the_tool_tells_what_to_give_for_other_tokenizers(flags, told, tmp_path):
    command = [sys.executable, str(TOOLS / "preprocess_data.py"), "--input", "x", "--output-prefix", "y"]
    done = subprocess.run([*command, *flags.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and told in done.stderr


def test_the_tool_takes_megatrons_flags(text_corpus, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", TEXTS)
    command = [sys.executable, str(TOOLS / "preprocess_data.py"), "--input", str(path), "--output-prefix"]
    command += [str(tmp_path / "out"), "--tokenizer-type", "SentencePieceTokenizer", "--append-eod", "--workers", "1"]
    command += ["--tokenizer-model", str(text_corpus.tokenizer_path), "--partitions", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--partitions is ignored" in done.stdout and "8 documents read" in done.stdout
    megatrons_pair(tmp_path / "theirs", TEXTS, text_corpus.tokenizer)
    assert read_pair(tmp_path / "out_text_document") == read_pair(tmp_path / "theirs")
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in "xy":
        tokenize_files([path], folder / name, text_corpus.tokenizer, TokenizeOptions())
    done = subprocess.run(
        [
            sys.executable,
            str(TOOLS / "merge_datasets.py"),
            "--input",
            str(folder),
            "--output-prefix",
            str(tmp_path / "m"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 pairs merged" in done.stdout

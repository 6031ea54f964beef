"""How far a tokenizing job has come: counted block by block, saved, and another job's left alone."""

from collections import Counter
from dataclasses import asdict

import pytest

from megatron_sky.data.ingest.documents import Reject
from megatron_sky.data.ingest.encode import EncodedBlock
from megatron_sky.data.ingest.inputs import Block
from megatron_sky.data.ingest.progress import Progress


def block(path: str = "a.jsonl") -> Block:
    return Block(path, 0, 10)


def encoded(**counts) -> EncodedBlock:
    return EncodedBlock((), **({"lines": 5, "blank": 1, "documents": 3, "empty": (1,), "rejects": []} | counts))


def test_blocks_add_up():
    progress = Progress("f", empty=[0])
    progress.begin(block())
    progress.add(block(), encoded(notes=Counter(bom=1), source_xxh3="h1"))
    progress.begin(block())
    progress.add(block(), encoded(rejects=[Reject.__new__(Reject)], notes=Counter(bom=2), source_xxh3="h2"))
    assert (progress.blocks, progress.lines, progress.read, progress.blank) == (2, 10, 7, 2)
    assert progress.empty == [2] and progress.notes == {"bom": 3} and progress.hashes == {"a.jsonl": ["h1", "h2"]}
    progress.begin(block("b.jsonl"))
    assert progress.lines == 0 and progress.path == "b.jsonl", "lines are the file's"


def test_what_is_saved_comes_back_to_the_same_job_alone(tmp_path):
    path = tmp_path / "p.progress.json"
    progress = Progress("f", blocks=3, empty=[1, 2], hashes={"a": ["h"]}, writers=[{"size": 4}], rejects_size=9)
    progress.save(path)
    assert asdict(Progress.load(path, "f")) == asdict(progress)
    assert Progress.load(path, "another") is None and Progress.load(tmp_path / "none", "f") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fingerprint": "f", "later": 1}', "{}"])
def test_what_is_no_progress_is_none(text, tmp_path):
    path = tmp_path / "p.progress.json"
    path.write_text(text)
    assert Progress.load(path, "f") is None

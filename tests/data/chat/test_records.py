"""Objects out of JSONL, JSON and Parquet, with the places of those that can't be read."""

import gzip
import json

import pytest

from megatron_sky.data.chat import records
from megatron_sky.data.chat.records import read_records
from megatron_sky.errors import DataError

ROWS = [{"instruction": f"问 {number}", "output": "答" * number} for number in range(1, 30)]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_all_objects_in_order(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    if ending == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
        text = json.dumps(ROWS, ensure_ascii=False, indent=1) if ending == ".json" else f"\ufeff{lines}\n\n"
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    seen = list(read_records(path))
    assert [record.value for record in seen] == ROWS and not any(record.reason for record in seen)
    assert [record.line for record in seen] == (
        [2 + 4 * n for n in range(29)] if ending == ".json" else list(range(1, 30))
    )


def test_a_list_longer_than_what_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_READ_CHARACTERS", 7)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([*ROWS, 12345678, [1]], ensure_ascii=False), encoding="utf-8")
    assert [record.value for record in read_records(path)] == [*ROWS, 12345678, [1]]


def test_broken_lines_have_their_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\nnonsense\n"\xff"\n' + b"x" * 350 + b'\n{"a": 2}')
    assert [(record.line, record.reason) for record in read_records(path)] == [
        (1, ""), (2, "not_json"), (3, "not_json"), (4, "too_long_line"), (5, "")
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['[{"a": 1},\n{"a": ]', '[{"a": 1}\n', "[1, nonsense]", "[" * 100_000])
def test_a_broken_list_is_refused_by_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.json, line \d: element \d of the list is no JSON"):
        list(read_records(path))

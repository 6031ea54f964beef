"""The planner's errors on published measurements, held."""

import csv

import pytest

from megatron_sky.errors import DataError
from megatron_sky.planner import published
from megatron_sky.planner.forecast import usable_bytes

ROWS, PASSED_OVER = published.read_rows()
REPORT = [row for row in ROWS if row.id.startswith("sky-")]  # the Skywork-13B report's table 10
CONTRADICTS_ITSELF = "sky-llama2-dp128-tp4"  # its tokens/s, TFLOP/s and MFU do not go together


def test_memory_of_the_reports_rows():
    errors = published.memory_errors(REPORT)
    assert len(errors.values) == 10
    assert errors.mean <= 0.03 and abs(errors.worst) <= 0.06


def test_speed_of_the_reports_rows():
    errors = published.speed_errors([row for row in REPORT if row.id != CONTRADICTS_ITSELF])
    assert len(errors.values) == 9
    assert errors.mean <= 0.04 and abs(errors.worst) <= 0.10


def test_speed_of_all_rows():
    errors = published.speed_errors(ROWS)
    assert len(errors.values) > 300 and not PASSED_OVER
    assert errors.mean <= 0.10 and abs(errors.bias) <= 0.07


def test_what_ran_out_of_memory_does_not_fit():
    lost = [row for row in REPORT if row.out_of_memory]
    assert len(lost) == 2
    assert all(row.predicted_memory() * published.GB > usable_bytes(row.job) for row in lost)
    assert all(row.predicted_memory() * published.GB < usable_bytes(row.job) for row in REPORT if row.memory_gb)


def test_the_reports_order_of_layouts():
    skywork = [row for row in REPORT if "skywork" in row.id and row.tokens_per_s]
    best = max(skywork, key=published.Row.predicted_speed)
    assert best.id == "sky-skywork-dp256-pp2" == max(skywork, key=lambda row: row.tokens_per_s).id


def table_of(tmp_path, *changes):
    """A CSV file with a row of the own one for each `(old, new)` text."""
    text = published.OWN.read_text(encoding="utf-8").splitlines()
    wanted = next(line for line in text if line.startswith("sky-skywork-dp256-pp2"))
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([text[0], *(wanted.replace(*change) for change in changes)]), encoding="utf-8")
    return path


def test_another_table_is_read(tmp_path):
    changes = [
        ("", ""),
        ("512,1,2,,1,256,zero1", "512,,,,1,512,fsdp"),
        ("52,4608", ",4608"),
        ("A800-SXM-80GB", "MI300X"),
        ("A800-SXM-80GB", "H100-SXM-96GB"),
    ]
    rows, passed_over = published.read_rows(table_of(tmp_path, *changes))
    assert [row.tokens_per_s for row in rows] == [1873, 1873, 1873]
    assert [row.job.cluster.gpu.name for row in rows] == ["a800", "a800", "h100-96gb"]
    assert [row.job.sharding for row in rows] == ["zero1", "zero3", "zero1"] and rows[1].job.layout.dp_size == 512
    assert [each.partition(": ")[2] for each in passed_over] == [
        "num_layers not published",
        "MI300X is not in the hardware file",
    ]


def test_a_table_that_cant_be_read_is_told(tmp_path):
    with pytest.raises(DataError, match=r"rows.csv:2 \(sky-skywork-dp256-pp2\): can't be read"):
        published.read_rows(table_of(tmp_path, ("52,4608", "52,many")))
    path = table_of(tmp_path, ("", ""))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("num_layers", "layers").replace("sharding", "shards"), encoding="utf-8")
    with pytest.raises(DataError, match="has no column num_layers, sharding"):
        published.read_rows(path)
    path.write_text(text.splitlines()[0] + "\nshort,13B,40", encoding="utf-8")
    assert published.read_rows(path) == ([], ["short: hidden, seq, gpu, nodes_or_gpus, tp, pp not published"])


def test_every_row_names_its_source():
    with published.OWN.open(encoding="utf-8", newline="") as file:
        assert all(row["source"] and row["id"] for row in csv.DictReader(file))

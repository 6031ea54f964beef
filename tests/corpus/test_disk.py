import shutil
from dataclasses import dataclass

import pytest

from megatron_sky.corpus.disk import DiskNeed, check_disk, disk_needs
from megatron_sky.corpus.ledger import Amount, StageAccount, write_part
from megatron_sky.corpus.plan import Piece, Plan, Unit
from megatron_sky.corpus.recipe import CorpusRecipe
from megatron_sky.errors import RunError

RECIPE = CorpusRecipe.model_validate(
    {
        "out": "x",
        "sources": [
            {"name": "web", "kind": "warc", "paths": ["x"]},
            {"name": "wiki", "kind": "jsonl", "paths": ["x"]},
        ],
        "outputs": [{"name": "all"}],
    }
)
UNITS = (Unit("web", (Piece("a.warc.gz", 0, 4000),)), Unit("wiki", (Piece("b.jsonl", 0, 1000), Piece("c.zst", 0, 500))))


@dataclass
class Pass:
    name: str
    num_tasks: int
    stages: tuple = ()


PASSES = [Pass("read", 2, ("read", "heuristics")), Pass("clean", 2, ("recurrence",)), Pass("publish", 1)]


def done(folder, name, *tasks):
    place = folder / "logs" / name / "completions"
    place.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        (place / f"{task:05d}").touch()


def test_needs_are_estimated_and_then_known(tmp_path):
    def needs():
        return {one.name: one.bytes for one in disk_needs(RECIPE, Plan({}, UNITS, {}), PASSES, tmp_path)}

    texts = 4000 + 1000 + 2000
    signatures = (12 * (8 * 11 + 4) + 21) * 4  # documents
    assert needs() == {"read": texts // 2 + 42 * 4, "clean": texts // 2 + signatures, "publish": 0}
    done(tmp_path, "read", 0)
    assert needs()["read"] == (texts // 2 + 42 * 4) // 2
    done(tmp_path, "read", 1)
    write_part(tmp_path, "heuristics", 0, {"web": StageAccount(kept=Amount(2, 300))})
    assert needs() == {"clean": 150 + signatures // 2, "publish": 0}


def test_a_build_without_room_is_refused(tmp_path, monkeypatch):
    needs = [DiskNeed("read", 3_000_000), DiskNeed("clean", 2_000_000_000), DiskNeed("publish", 0)]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9e12, 8e12, 2_003_000_000))
    line = "disk: about 2.00 GB (read 3.0 MB, clean 2.00 GB); 2.00 GB are free"
    assert check_disk(needs, tmp_path, refuse=True) == line
    needs.append(DiskNeed("finish", 1_000_000))
    with pytest.raises(RunError, match=r"there is not enough space\n  disk: about 2\.00 GB .*finish 1\.0 MB"):
        check_disk(needs, tmp_path, refuse=True)
    assert "finish" in check_disk(needs, tmp_path, refuse=False)

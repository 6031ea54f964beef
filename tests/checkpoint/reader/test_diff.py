"""How two checkpoints differ, told key by key and tensor by tensor."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.reader.diff import differences
from megatron_sky.files import write_json
from tests.checkpoint.record import RECORDED


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """A recorded checkpoint, twice."""
    (recorded,) = [folder for folder in RECORDED.iterdir() if folder.name.startswith("0.16")]
    first, second = (shutil.copytree(recorded / "checkpoint", tmp_path / n / "step_0000001") for n in ("a", "b"))
    return first, second


def edit(folder: Path, name: str, change) -> None:
    """Changes a file; the manifest is made to agree."""
    path = folder / name
    path.write_text(change(path.read_text()))
    records = store.read_manifest(folder) | store.hash_files(folder, [name])
    write_json(folder / store.MANIFEST, store.manifest_of(1, records))


def test_equal_ones(pair):
    assert differences(*pair) == [] == differences(pair[0], pair[0])


def test_keys_of_the_recipe_and_the_progress(pair):
    first, second = pair
    edit(second, "config.yaml", lambda text: text.replace("  seed: 1234\n", "  seed: 99\n"))

    def further(text: str) -> str:
        state = json.loads(text)
        state["progress"]["step"] += 1
        return json.dumps(state)

    edit(second, store.TRAIN_STATE, further)
    lines = differences(first, second)
    assert any(line.startswith("recipe ") and line.endswith("| 99") for line in lines), lines
    assert [line for line in lines if line.startswith("progress ")] == ["progress step: 1 | 2"]
    assert not any(line.startswith("weight ") for line in lines)


def test_numbers_of_a_weight(pair, monkeypatch):
    from megatron_sky.checkpoint.reader import diff

    weights = diff.weight_tensors(pair[0], diff.read_stored(pair[0]))
    name, tensor = next(iter(weights.items()))
    bits = tensor.load().copy()
    bits.flat[0] = 0
    difference = abs(float(diff.as_float32(tensor.load(), tensor.dtype).flat[0]))
    changed = weights | {name: diff.LazyTensor(tensor.dtype, tensor.shape, lambda: bits, "b")}
    gone = {other: tensor for other, tensor in changed.items() if other != "decoder.final_layernorm.weight"}
    answers = iter([weights, gone])
    monkeypatch.setattr(diff, "weight_tensors", lambda folder, stored: next(answers))
    lines = differences(*pair)
    assert f"weight decoder.final_layernorm.weight: only in {pair[0]}" in lines
    assert (
        f"weight {name}: largest difference {difference:.3g}, in 1 of {bits.size:,} numbers" in lines
        and len(lines) == 2
    )

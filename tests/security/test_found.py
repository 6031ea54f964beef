"""Damaged files that once ended in a traceback, or in the end of the process: each is told by its reader."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.description import read_description
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.sources import open_source
from megatron_sky.data.tokens.indexed import IndexedTokens
from megatron_sky.data.tokens.inspection import overview, show_document
from megatron_sky.errors import CheckpointError, DataError
from megatron_sky.tokenizer.kinds import load_tokenizer
from tests.security import material
from tests.security.material import change_json

ROOT = Path(__file__).parents[2]
STEP = "run/checkpoints/step_0000003"


@pytest.fixture
def folder(tmp_path) -> Path:
    return material.copy(tmp_path / "files")


@pytest.mark.parametrize("bound", [-1, 3, 10**9, 2**62])
def test_documents_that_begin_where_no_sequence_is(bound, folder):
    prefix = folder / "tokens/en"
    with IndexedTokens(prefix) as pair:
        at = pair.header.bounds_at + 8 * 2  # the third document's begin, 2
    with open(f"{prefix}.idx", "r+b") as file:
        file.seek(at)
        file.write(bound.to_bytes(8, "little", signed=True))
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    if bound == 3:  # in order: one document has no sequence
        assert overview(prefix, tokenizer).num_documents == 6
        return
    with pytest.raises(DataError, match=r"en\.idx"):
        overview(prefix, tokenizer)
    with pytest.raises(DataError, match=r"en\.idx"):
        show_document(prefix, 2, tokenizer)


def test_tokens_that_the_tokenizer_has_not(folder):
    path = folder / "tokens/en.bin"
    path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])
    with pytest.raises(DataError, match=r"tokenizer\.model fails: .*\n  fix: .* give the tokenizer that made them"):
        show_document(folder / "tokens/en", 0, load_tokenizer(folder / "tokenizer.model"))


def test_a_tokenizer_that_fails_only_when_it_is_used(tmp_path, sky):
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel(vocab={"a": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")).save(str(path))
    change_json(path, lambda content: content["model"].update(unk_token="\x1b[2J"))
    code, _, err = sky("tokenizer", "check", path)
    assert code == 3 and "Traceback" not in err and "\x1b" not in err


@pytest.mark.parametrize(
    "change",
    [
        {"progress": []}, {"progress": {"step": "3"}}, {"progress": {"consumed_tokens": -1}}, {"progress": None},
        {"progress": {"skipped": [1]}}, {"data": []}, {"layout": 3}, {"sources": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_state_of_another_shape(change, folder):
    change_json(folder / STEP / "train_state.json", lambda state: state.update(change))
    with pytest.raises(CheckpointError, match=r"train_state\.json: can't be read: .*\n  fix: "):
        read_description(folder / STEP)


def test_a_plan_of_another_shape(folder):
    from megatron_sky.data.sampling.run_plan import RunPlan

    saved = read_description(folder / STEP).data
    for wrong in ({"segments": 3}, {"segments": [{}]}, {"segments": [None]}, {}):
        with pytest.raises(CheckpointError, match="data is no plan of samples"):
            RunPlan.from_fingerprint(saved | {"segments": None} | wrong, 1.0)


@pytest.mark.parametrize("hashes", [{"xxh3": ""}, {"sha256": "", "xxh3": ""}])
def test_a_manifest_whose_hashes_are_empty(hashes, folder):
    change_json(folder / STEP / "manifest.json", lambda manifest: manifest["files"]["config.yaml"].update(hashes))
    with pytest.raises(CheckpointError, match=r"config\.yaml has neither a sha256 nor an xxh3"):
        store.verify(folder / STEP)


@pytest.mark.parametrize("flag", [0, 0x800])
def test_an_archive_whose_names_are_no_utf_8(flag, folder):
    """With the bit that says they are, and without."""
    path = folder / STEP / "common.pt"
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02")
    content[entry + 8 : entry + 10] = flag.to_bytes(2, "little")
    content[entry + 46] = 0xFF
    path.write_bytes(content)
    try:
        TorchArchive(path)
    except CheckpointError as error:
        assert "is no archive of torch.save" in str(error)


def test_settings_with_half_of_a_surrogate_pair_are_carried_over(folder, tmp_path):
    write_hf(open_source(folder / STEP), tmp_path / "hf")
    change_json(tmp_path / "hf/generation_config.json", lambda settings: settings.update(note="\ud800"))
    write_hf(open_source(tmp_path / "hf"), tmp_path / "again")
    assert json.loads((tmp_path / "again/generation_config.json").read_text())["note"] == "\ud800"


def test_a_hugging_face_folder_whose_name_is_no_utf_8(folder):
    strange = folder.with_name(os.fsdecode(b"na\xffme"))
    with pytest.raises(CheckpointError, match="its name is no UTF-8"):
        write_hf(open_source(folder / STEP), strange)
    assert not strange.exists()


def test_a_column_whose_name_is_no_utf_8(folder, sky):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"textname": ["a"]}), folder / "a.parquet", store_schema=False)
    content = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(content.replace(b"textname", b"text\xffame"))
    words = ("--out", folder / "new", "--tokenizer", folder / "tokenizer.model", "--workers", 1)
    code, _, err = sky("data", "tokenize", folder / "a.parquet", *words)
    assert code == 3 and "broken Parquet file" in err and "Traceback" not in err


def test_a_bomb_is_read_within_bounded_memory(folder):
    """A kilobyte whose rows are 4.6 GB."""
    pytest.importorskip("pyarrow")
    import pyarrow as arrow
    from pyarrow import parquet

    words = arrow.DictionaryArray.from_arrays(arrow.array([0] * 256, arrow.int32()), ["a" * 18_000_000])
    parquet.write_table(arrow.table({"text": words}), folder / "a.parquet", compression="zstd", store_schema=False)
    shutil.copy(folder / "tokenizer.model", folder / "t.model")
    code = (
        "import sys\nfrom megatron_sky.evaluate.documents import read_domain\n"
        "from megatron_sky.data.ingest.inputs import *\nfrom pathlib import Path\n"
        "(piece,) = cut_pieces([Path(sys.argv[1])])\nprint(sum(len(b.rows) for b in blocks_of(piece, ['text'])))"
    )
    limit = 2 << 30  # of addresses, of which the libraries take a half
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "a.parquet"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.stdout.strip() == "256", done.stderr

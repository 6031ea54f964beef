"""`eval loss` and `eval leakage` on real checkpoints: native, exported, split over ranks, against transformers."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_sky.errors import DataError
from megatron_sky.evaluate.results import read_documents, read_leakage, read_loss
from tests.conftest import SEQ_LENGTH
from tests.evaluate import workers

pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def data(corpus, tmp_path_factory):
    """Two domains of 12 documents each, from the corpus's test split."""
    folder = tmp_path_factory.mktemp("domains")
    given = []
    for name in ("en_web", "zh_web"):
        lines = (corpus / "text/test" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:12]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        given.append(f"{name}={folder / name}.jsonl")
    return given


@pytest.fixture(scope="session")
def evaluated(ranks, native, hf, data, tmp_path_factory):
    """The result folder of the native checkpoint of "tp2" and its export, evaluated in one process."""
    out = tmp_path_factory.mktemp("evaluated")
    models = [f"native={native('tp2')}", f"exported={hf('tp2')}"]
    assert ranks(1, workers.loss, models, data, str(out)) == [None]
    return out


def losses(out, model):
    return {(each.domain, each.document): each.loss_sum for each in read_documents(out / f"documents/{model}.jsonl")}


def test_the_native_and_the_exported_checkpoint_agree(evaluated):
    found = read_loss(evaluated)
    one, other = found.models
    assert (one.model.kind, other.model.kind) == ("native", "hugging_face")
    assert one.model.begin_id == other.model.begin_id == 2
    assert one.average.tokens == other.average.tokens > 24 * 5
    assert one.average.loss == pytest.approx(other.average.loss, abs=1e-5)
    assert one.average.perplexity == pytest.approx(other.average.perplexity, rel=1e-5)
    assert losses(evaluated, "native") == pytest.approx(losses(evaluated, "exported"), abs=1e-4)


def test_losses_are_those_that_transformers_gives(evaluated, hf, data, ranks):
    rows = read_documents(evaluated / "documents/native.jsonl")
    path = data[1].partition("=")[2]
    texts = [each["text"][: SEQ_LENGTH // 3] for each in workers.documents(Path(path))]
    expected = ranks(1, workers.hf_losses, str(hf("tp2")), texts, SEQ_LENGTH)[0]
    assert [row.loss_sum for row in rows if row.domain == "zh_web"] == pytest.approx(expected, abs=1e-4)
    assert [row.characters for row in rows if row.domain == "zh_web"] == [len(text) for text in texts]
    assert [row.bytes for row in rows if row.domain == "zh_web"] == [len(text.encode()) for text in texts]


@pytest.mark.parametrize(
    ("world_size", "split"), [(2, {}), (2, {"tp_size": 2}), (2, {"pp_size": 2})], ids=["dp2", "tp2", "pp2"]
)
def test_any_number_of_ranks_gives_the_same(world_size, split, evaluated, native, hf, data, ranks, tmp_path):
    models = [f"native={native('tp2')}", f"exported={hf('tp2')}"]
    assert ranks(world_size, workers.loss, models, data, str(tmp_path), split) == [None] * world_size
    for model in ("native", "exported"):
        assert losses(tmp_path, model) == pytest.approx(losses(evaluated, model), abs=1e-4)
    assert read_loss(tmp_path).models[0].average.perplexity == pytest.approx(
        read_loss(evaluated).models[0].average.perplexity, rel=1e-5
    )


def test_a_long_document_is_scored_by_windows_if_asked(native, hf, data, ranks, tmp_path):
    """Stride 1 gives each token all the context there is, as the plain loop does; a larger one less."""
    lines = workers.documents(Path(data[0].partition("=")[2]))[:2]
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(json.dumps({"text": each["text"][:150]}) for each in lines), encoding="utf-8")
    given = [f"long={path}"]
    refusal = ranks(1, workers.loss, [str(native("tp2"))], given, str(tmp_path), {"max_characters": 0})[0]
    assert "2 of 2 documents are longer than the context of 32 tokens" in refusal and "--stride 16" in refusal
    sums = {}
    for stride in (1, 8, 32):
        out, options = tmp_path / str(stride), {"max_characters": 0, "stride": stride}
        assert ranks(1, workers.loss, [f"m={native('tp2')}"], given, str(out), options) == [None]
        sums[stride] = [each.loss_sum for each in read_documents(out / "documents/m.jsonl")]
    expected = ranks(1, workers.hf_losses, str(hf("tp2")), [each["text"][:150] for each in lines], SEQ_LENGTH)[0]
    assert sums[1] == pytest.approx(expected, abs=1e-3)
    assert sums[8] != pytest.approx(expected, abs=1e-3) and sums[8] == pytest.approx(expected, rel=0.05)
    assert sums[32] != pytest.approx(sums[8], abs=1e-3)


def test_documents_of_the_training_mixture_are_named(native, corpus, ranks, tmp_path):
    train = corpus / "text/train/en_web.jsonl"
    lines = train.read_text(encoding="utf-8").splitlines()
    clean = (corpus / "text/test/en_web.jsonl").read_text(encoding="utf-8").splitlines()
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join([*clean[:5], *lines[3:7]]), encoding="utf-8")
    given = [f"whole={train}", f"mixed={mixed}", f"clean={corpus / 'text/test/en_web.jsonl'}"]
    assert ranks(1, workers.loss, [str(native("tp2"))], given, str(tmp_path / "out"), {"max_documents": 20}) == [None]
    warnings = read_loss(tmp_path / "out").models[0].model.warnings
    assert len(warnings) == 2
    assert "en_web.jsonl was trained on, as part of the source en_web" in warnings[0]
    assert "domain mixed: 4 of its documents were trained on" in warnings[1]


def test_another_tokenizer_normalises_by_its_tokens(native, corpus, data, ranks, tmp_path):
    from megatron_sky.tokenizer.train import train_tokenizer

    texts = [json.loads(line)["text"] for line in (corpus / "text/train/en_web.jsonl").open(encoding="utf-8")]
    reference = train_tokenizer(texts, tmp_path / "reference.model", 330)
    out = tmp_path / "out"
    options = {"reference_tokenizer": tmp_path / "reference.model"}
    assert ranks(1, workers.loss, [f"m={native('tp2')}"], data, str(out), options) == [None]
    found = read_loss(out)
    figures = found.models[0].domains["en_web"]
    cut = [each["text"][: SEQ_LENGTH // 3] for each in workers.documents(Path(data[0].partition("=")[2]))]
    assert figures.reference_tokens == sum(len(reference.encode(text)) for text in cut) != figures.tokens
    assert figures.normalised_loss == pytest.approx(figures.loss * figures.tokens / figures.reference_tokens)
    assert found.setting.reference_sha256 == reference.sha256


def changed(folder, to, change):
    """A copy of a Hugging Face folder with its tensors changed in place by `change`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def spoil(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][:] = float("nan")


def test_losses_that_are_no_numbers_stop_with_the_place(hf, data, ranks, tmp_path):
    folder = changed(hf("tp2"), tmp_path / "broken", spoil)
    told = ranks(1, workers.loss, [str(folder)], data, str(tmp_path / "out"))[0]
    assert told.startswith("CheckpointError: broken") and "24 of 24 documents is nan" in told and "en_web" in told
    assert not (tmp_path / "out/loss.json").exists()


def test_a_model_without_finite_losses_does_not_keep_the_others_from_their_results(hf, data, ranks, tmp_path):
    broken = changed(hf("tp2"), tmp_path / "broken", spoil)
    models, out = [f"a={hf('tp2')}", str(broken), f"b={hf('tp2')}"], tmp_path / "out"
    told = ranks(2, workers.loss, models, data, str(out))
    assert told[0] == told[1] and told[0].startswith("broken") and "24 of 24 documents is nan" in told[0]
    found = read_loss(out)
    assert [each.model.name for each in found.models] == ["a", "b"] and found.failed == (told[0],)
    assert f"- {told[0]}" in (out / "loss.md").read_text(encoding="utf-8")
    assert sorted(each.name for each in (out / "documents").iterdir()) == ["a.jsonl", "b.jsonl"]


def test_what_was_scored_before_an_error_is_kept(hf, data, ranks, tmp_path):
    part = changed(hf("tp2"), tmp_path / "part", lambda tensors: tensors.pop(WEIGHT))
    told = ranks(1, workers.loss, [f"whole={hf('tp2')}", str(part)], data, str(tmp_path / "out"))[0]
    assert told.startswith("CheckpointError") and "is missing" in told
    assert [each.model.name for each in read_loss(tmp_path / "out").models] == ["whole"]


def test_an_out_that_can_not_be_written_is_told_before_a_model_is_loaded(hf, data, ranks, tmp_path):
    part = changed(hf("tp2"), tmp_path / "part", lambda tensors: tensors.pop(WEIGHT))  # loading it would be told
    (tmp_path / "file").write_text("")
    told = ranks(1, workers.loss, [str(part)], data, str(tmp_path / "file/out"))[0]
    assert told.startswith(f"RunError: {tmp_path / 'file/out'}: can't be written") and "--out" in told
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/documents").write_text("")
    told = ranks(1, workers.loss, [str(part)], data, str(tmp_path / "taken"))[0]
    assert told.startswith(f"RunError: {tmp_path / 'taken/documents'}: can't be written")


WEIGHT = "model.layers.2.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(WEIGHT), f"{WEIGHT} is missing"),
        (lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT][1:].clone()}), ", not [32, 48]"),
    ],
    ids=["missing", "mismatched"],
)
def test_a_folder_without_all_the_weights_is_refused(hf, data, ranks, tmp_path, change, words):
    """transformers would run it with random numbers in their place."""
    folder = changed(hf("tp2"), tmp_path / "part", change)
    told = ranks(1, workers.loss, [str(folder)], data, str(tmp_path / "out"))[0]
    assert told.startswith(f"CheckpointError: {folder}") and words in told


def test_a_folder_that_was_cut_off_is_refused_in_words(hf, data, ranks, tmp_path):
    folder = changed(hf("tp2"), tmp_path / "cut", lambda tensors: None)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:10_000])
    told = ranks(1, workers.loss, [str(folder)], data, str(tmp_path / "out"))[0]
    assert told.startswith(f"CheckpointError: {folder}: transformers can't load it")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "gpt2"])
def test_a_tied_weight_is_not_missing(kind, hf, native, data, ranks, tmp_path):
    models = [f"native={native(kind)}", f"exported={hf(kind)}"]
    assert ranks(1, workers.loss, models, data, str(tmp_path)) == [None]
    one, other = read_loss(tmp_path).models
    assert one.average.loss == pytest.approx(other.average.loss, abs=1e-5)


def test_leakage_of_a_checkpoint(native, hf, corpus, ranks, tmp_path):
    files = {name: [str(corpus / "text" / name / "stem.jsonl")] for name in ("train", "test")} | {"reference": []}
    more = {"generate": "gsm8k-like", "seed": 7, "options": {"max_documents": 15, "stride": 16}}
    models = [f"native={native('tp2')}", f"exported={hf('tp2')}"]
    assert ranks(1, workers.leakage, models, files, str(tmp_path), more) == [None]
    found = read_leakage(tmp_path)
    one, other = found.models
    assert [each.name for each in found.sets] == ["train", "test", "reference"]
    assert found.sets[2].documents == 15 and "gsm8k-like, seed 7" in found.sets[2].files[0]
    plain = one.comparisons[0]
    assert plain.delta1.value == pytest.approx(plain.test.value - plain.reference.value)
    assert plain.delta2.value == pytest.approx(plain.test.value - plain.train.value)
    assert plain.delta1.low < plain.delta1.value < plain.delta1.high
    assert plain.test.value == pytest.approx(other.comparisons[0].test.value, abs=1e-4)
    assert one.test_verdict.finding == other.test_verdict.finding
    rows = read_documents(tmp_path / "documents/leakage_native.jsonl")
    test = [row for row in rows if row.domain == "test"]
    assert sum(r.loss_sum for r in test) / sum(r.tokens for r in test) == pytest.approx(plain.test.value)
    for name in ("leakage.csv", "leakage.md", "leakage.png"):
        assert (tmp_path / name).stat().st_size > 200
    assert not one.model.warnings  # the train split may have been trained on


def test_result_files_of_another_kind_are_refused(evaluated, tmp_path):
    with pytest.raises(DataError, match=r"leakage\.json"):
        read_leakage(evaluated)
    content = json.loads((evaluated / "loss.json").read_text())
    del content["models"][0]["average"]["tokens"]
    (tmp_path / "loss.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no whole loss file"):
        read_loss(tmp_path)

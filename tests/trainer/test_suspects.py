"""The texts behind a bad step: by source and document, and by source alone where the order tells no more."""

import json
from types import SimpleNamespace

from megatron_sky.data.loader import TrainData
from megatron_sky.data.sampling.mixture import SessionMixture
from megatron_sky.data.tokens.sources import open_source
from megatron_sky.trainer.suspects import in_words, name_samples, write


def test_samples_are_named_by_source_and_document(recipe):
    config = recipe()
    sources = [open_source(source.path, vocab_size=config.model.vocab_size) for source in config.data.train]
    data = TrainData(
        config.data,
        sources,
        seq_length=config.model.seq_length,
        vocab_size=config.model.vocab_size,
        sessions=[SessionMixture(0, 320)],
    )
    named = name_samples(data, [0, 5, 17])
    for number, suspect in zip([0, 5, 17], named, strict=True):
        location = data.plan.locate(number)
        file = sources[location.source].tokens
        assert suspect["sample"] == number and suspect["source"] == config.data.train[location.source].name
        start = location.sequence * config.model.seq_length
        assert suspect["file"] == str(file.prefix) and suspect["epoch"] == location.epoch
        assert suspect["first_document"] == file.document_at(data.plan.token_offset(location)) or start == 0
        assert suspect["first_document"] <= suspect["last_document"] < file.num_documents


def test_megatrons_order_tells_the_source_alone():
    plan = SimpleNamespace(sources=[SimpleNamespace(name="a"), SimpleNamespace(name="b")], source_of=lambda n: n % 2)
    named = name_samples(SimpleNamespace(plan=plan), [3, 4])
    assert named == [{"sample": 3, "source": "b"}, {"sample": 4, "source": "a"}]
    assert in_words(named) == "b sample 3, a sample 4"


def test_the_first_few_in_words():
    suspects = [{"sample": n, "source": "web", "first_document": n, "last_document": n + 1} for n in range(6)]
    assert in_words(suspects[:1]) == "web documents 0-1" and in_words([]) == ""
    assert in_words(suspects).endswith("web documents 3-4 and 2 more")


def test_all_of_them_are_written(tmp_path):
    path = write(tmp_path, 123, [{"sample": 1, "source": "a"}])
    assert path == tmp_path / "bad_steps/step_0000123.json" and json.loads(path.read_text()) == [
        {"sample": 1, "source": "a"}
    ]
    assert write(tmp_path, 124, []).is_file()

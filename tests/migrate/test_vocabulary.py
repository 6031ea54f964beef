import pytest

from megatron_sky.migrate.recipe import translate
from megatron_sky.migrate.vocabulary import version_of

NULL = ("--tokenizer-type", "NullTokenizer", "--vocab-size")


@pytest.mark.parametrize(
    ("version", "size"), [("0.16.1", 1001), ("core_v0.17.0", 1001), ("0.18.2", 1000), ("0.20", 1000)]
)
def test_null_tokenizers_tokens_by_version(version, size):
    done = translate([*NULL, "1000"], megatron=version)
    assert done.recipe["model"]["vocab_size"] == size
    assert not any("model.vocab_size" in line for line in done.to_give)


def test_one_more_than_a_variable_is_asked_for():
    done = translate([*NULL, "${N}"], megatron="0.16.1")
    assert "model.vocab_size: one more than --vocab-size ${N}, for NullTokenizer" in done.to_give
    assert translate([*NULL, "${N}"], megatron="0.18.0").recipe["model"]["vocab_size"] == "${N}"


def test_another_tokenizer_is_none_of_it():
    assert translate(["--vocab-size", "1000"], megatron="0.16.1").recipe["model"]["vocab_size"] == 1000


def test_versions():
    assert (version_of("0.16.1"), version_of("core_v0.19.0"), version_of("V1.2")) == ((0, 16), (0, 19), (1, 2))


def test_a_batch_that_newer_versions_do_not_let_grow():
    words = ["--global-batch-size", "8", "--seq-length", "32", "--train-samples", "72"]
    words += ["--rampup-batch-size", "2", "2", "24"]
    assert translate(words, megatron="0.17.1").recipe["train"]["batch_rampup"]["start_size"] == 2
    done = translate(words, megatron="0.19.0")
    assert "batch_rampup" not in done.recipe["train"]
    assert any(line.startswith("--rampup-batch-size 2 2 24: megatron-core 0.19.0 passes") for line in done.no_effect)

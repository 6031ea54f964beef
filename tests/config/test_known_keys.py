import pytest

from megatron_sky.config.known_keys import meaning_of, nearest_key


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimizer.lrr", "schedule.lr"),
        ("lr", "schedule.lr"),
        ("modle", "model"),
        ("train.tokns", "train.tokens"),
        ("train.seq_length", "model.seq_length"),
        ("optimizer.beta1", "optimizer.adam_beta1"),
        ("data.train.3.wieght", "data.train.3.weight"),
        ("sessions.0.schedule.lrr", "sessions.0.schedule.lr"),
    ],
)
def test_a_near_key_is_asked_for(key, meant):
    assert nearest_key(key) == f"did you mean {meant}?"


@pytest.mark.parametrize("key", ["data.nope", "optimizer.learning_rate", "sessions.1.nope", "zzz"])
def test_where_none_is_near_the_keys_of_the_section_are_listed(key):
    section = key.rpartition(".")[0]
    known = {"data": "max_epochs", "optimizer": "weight_decay", "sessions.1": "tokens", "": "resilience"}[section]
    text = nearest_key(key)
    assert text.startswith(f"{section or 'the recipe'} has: ") and known in text.split(": ")[1].split(", ")


def test_a_key_means_what_its_description_says():
    assert meaning_of("train.tokens").startswith("Token budget")
    assert meaning_of("data.train.7.weight").startswith("Share of the mixture")
    assert meaning_of("validation").startswith("Losses on named held-out sets")
    assert meaning_of("data.nope") == ""

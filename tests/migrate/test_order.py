"""What `--same-order` writes; that it gives the same numbers is `tests/megatron_lm/`'s to say."""

import pytest

from megatron_sky.migrate.recipe import translate

BASE = [
    "--num-layers",
    "4",
    "--hidden-size",
    "64",
    "--num-attention-heads",
    "4",
    "--seq-length",
    "32",
    "--global-batch-size",
    "8",
    "--lr",
    "1e-3",
]


def translated(text: str):
    return translate([*BASE, *text.split()], same_order=True)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("--data-path d", "969,30,1"),
        ("--data-path d --split 949,50,1", "949,50,1"),
        ("--data-path d --split 100,0,0", None),
        ("--data-path d --split 1", None),
        ("--train-data-path d --valid-data-path v", None),
        ("--data-path d --split ${S}", "${S}"),
    ],
)
def test_the_split(text, split):
    done = translated(f"{text} --train-iters 10")
    assert done.recipe["data"]["sampling"] == "megatron"
    assert done.recipe["data"]["megatron"].get("split") == split
    assert done.recipe["data"]["megatron"]["num_samples"] == 80
    assert not any("--split" in line for line in done.no_counterpart)


def test_sources_without_weights_weigh_what_they_hold():
    data = translated("--data-path d/a d/b --train-iters 10").recipe["data"]
    assert data["megatron"]["weights"] == "sizes"
    assert [source["weight"] for source in data["train"]] == [1.0, 1.0]
    assert "weights" not in translated("--data-path 1 d/a 2 d/b --train-iters 10").recipe["data"]["megatron"]


@pytest.mark.parametrize(
    ("text", "sequences"),
    [
        ("--train-samples 60", 56),
        ("--train-samples 64", 64),
        ("--train-samples 72 --rampup-batch-size 2 2 24", 2 * 4 + 4 * 2 + 6 * 2 + 5 * 8),
        ("--train-samples 20 --rampup-batch-size 2 2 24", 2 * 4 + 4 * 2 + 6),
    ],
)
def test_the_last_step(text, sequences):
    """A last batch that isn't full is left out; the order is of all samples."""
    done = translated(f"--data-path d {text}")
    assert done.recipe["train"]["tokens"] == sequences * 32
    assert done.recipe["data"]["megatron"]["num_samples"] == int(text.split()[1])


def test_document_masks_are_another_training():
    flags = "--reset-position-ids --reset-attention-mask --eod-mask-loss"
    done = translated(f"--data-path d --train-iters 2 {flags}")
    assert "document_mask" not in done.recipe["data"] and "mask_document_ends" not in done.recipe["data"]
    told = " ".join(done.no_counterpart)
    for flag in flags.split():
        assert f"{flag}" in told
    assert "not together with --same-order" in told
    assert not any("document_mask" in line for line in done.mapped)


def test_what_is_not_told_is_asked_for():
    done = translated("--data-path d")
    assert any(line.startswith("data.megatron.num_samples: neither") for line in done.to_give)
    assert any(line.startswith("train.tokens") for line in done.to_give)

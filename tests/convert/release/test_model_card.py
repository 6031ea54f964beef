"""A released checkpoint's card: what it saw, how to load it, its hashes, and nothing of the machine."""

import pytest
import yaml

from megatron_sky.checkpoint.store import FileRecord
from megatron_sky.convert.release.model_card import Facts, build_card

FILES = {"b.safetensors": FileRecord(1234, sha256="b" * 64), "a.safetensors": FileRecord(5, sha256="a" * 64)}


@pytest.fixture
def facts(recipe) -> Facts:
    sources, validation = {"en_web": 750_000, "zh_web": 250_000}, {"en_web": (3.14159, 40)}
    return Facts("sky-1T", 40, 1_000_000, "TP1 x PP1 on 8 GPUs", recipe(), sources, validation)


def test_the_head_is_the_hubs(facts):
    _, head, rest = build_card(facts, FILES).split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers" and rest.startswith("\n# sky-1T\n")


def test_figures(facts):
    card = build_card(facts, FILES)
    for part in (
        "1,000,000 tokens (1.00M), step 40.",
        "| en_web | 750,000 | 75.0% |",
        "| en_web | 3.1416 | 40 |",
        "Trained as TP1 x PP1 on 8 GPUs.",
        f"| b.safetensors | 1,234 | `{'b' * 64}` |",
    ):
        assert part in card
    assert card.index("| a.safetensors") < card.index("| b.safetensors")


def test_the_recipe_has_no_paths(facts, tmp_path):
    card = build_card(facts, FILES)
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["train"]["tokens"] == facts.config.train.tokens and "run_dir" not in recipe["train"]
    assert [source["name"] for source in recipe["data"]["train"]] == ["en_web", "zh_web"]
    assert str(tmp_path) not in card and "/tokens/" not in card


def test_what_is_not_known_is_left_out(facts):
    card = build_card(Facts("m", 1, 1, "l", facts.config, {}, {}), {})
    assert "## Data seen so far" not in card and "## Validation loss" not in card and "## Files" in card

"""The generated reference set: its sums are right, its documents differ, and a seed gives the same ones."""

import re

from megatron_sky.evaluate.reference import generate_documents


def test_every_calculation_is_right_and_ends_in_the_result():
    for text in generate_documents("gsm8k-like", 2000, seed=3):
        notes = re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)", text)
        assert len(notes) >= 2
        for a, sign, b, noted, told in notes:
            exact = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[sign]
            assert exact == int(noted) == int(told), text
        assert text.endswith(f"\n#### {notes[-1][4]}")
        assert "?" in text


def test_documents_are_fresh_and_depend_on_the_seed_alone():
    one, again, other = (list(generate_documents("gsm8k-like", 500, seed)) for seed in (1, 1, 2))
    assert one == again and len(set(one)) == 500
    assert len(set(one) & set(other)) < 5

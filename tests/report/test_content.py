"""Tables and changes, before anybody writes them out."""

import pytest

from megatron_sky.report.content import Change, Sample, Table, table


def test_a_table_without_rows_is_no_block():
    assert table(["a"], [], "n") == []
    assert table(["a", "b"], [["x", "1"]], "nr", "c") == [Table(["a", "b"], [["x", "1"]], "nr", "c")]


@pytest.mark.parametrize(("rows", "kinds"), [([["x"]], "nr"), ([["x", "1"]], "n"), ([["x", "1"], ["y"]], "nr")])
def test_every_row_has_every_column(rows, kinds):
    with pytest.raises(AssertionError):
        table(["a", "b"], rows, kinds)


@pytest.mark.parametrize(
    ("value", "text", "direction"),
    [(-0.25, "-0.2500", "better"), (0.25, "+0.2500", "worse"), (0.0, "+0.0000", ""), (float("nan"), "+nan", "")],
)
def test_less_loss_is_better(value, text, direction):
    assert (Change(value).text, Change(value).direction) == (text, direction)


@pytest.mark.parametrize(("text", "continuation"), [("It rains", " rains"), ("other", "other"), ("It", "")])
def test_what_a_sample_goes_on_with(text, continuation):
    assert Sample("en", "It", text).continuation == continuation

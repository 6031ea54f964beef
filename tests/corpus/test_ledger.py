import pytest

from megatron_sky.corpus.ledger import Amount, StageAccount, prove, read_stage, write_part
from megatron_sky.errors import RunError


def account(given, kept, **dropped):
    drops = {rule: Amount(number, number) for rule, number in dropped.items()}
    return StageAccount(Amount(given, given), Amount(kept, kept), drops)


def test_parts_are_summed(tmp_path):
    write_part(tmp_path, "read", 0, {"web": account(5, 3, empty=2)})
    write_part(tmp_path, "read", 1, {"web": account(4, 4), "wiki": account(1, 0, empty=1)})
    write_part(tmp_path, "read", 1, {"web": account(2, 2), "wiki": account(1, 0, empty=1)})  # a task that ran again
    total = read_stage(tmp_path, "read")
    assert total["web"] == account(7, 5, empty=2) and total["wiki"].num_dropped == 1


def test_an_account_that_adds_up_is_proved():
    prove({"read": {"web": account(5, 3, empty=2)}, "route": {"web": account(3, 2, no_output=1)}})


@pytest.mark.parametrize(
    ("ledger", "message"),
    [
        ({"read": {"web": account(5, 3, empty=1)}}, "5 documents came, 3 went on and 1 were dropped"),
        (
            {"read": {"web": account(5, 5)}, "route": {"web": account(4, 4)}},
            "read gave 5 documents of 5 bytes, route got 4",
        ),
        ({"read": {"web": account(5, 5)}, "route": {}}, "route got 0"),
    ],
)
def test_what_is_missing_is_told(ledger, message):
    with pytest.raises(RunError, match=message):
        prove(ledger)


def test_bytes_cut_out_of_kept_documents_are_known():
    assert StageAccount(Amount(2, 100), Amount(1, 60), {"empty": Amount(1, 10)}).cut_bytes == 30

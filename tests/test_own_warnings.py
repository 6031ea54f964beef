"""A call of something that goes away, made by the package itself, fails the test that makes it (pyproject.toml)."""

import pytest

CATEGORIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def call_deprecated(module: str, category: type[Warning]) -> None:
    """As if a line of `module` called a function that warns its caller."""
    exec("import warnings; warnings.warn('goes away', category)", {"__name__": module, "category": category})


def noticed_on_a_rank(info, category: type[Warning]) -> bool:
    call_deprecated("torch.nn", category)
    try:
        call_deprecated("megatron_sky.trainer.step", category)
    except category:
        return True
    return False


@pytest.mark.parametrize("module", ["megatron_sky", "megatron_sky.trainer.step"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_our_own_is_an_error(module, category):
    with pytest.raises(category, match="goes away"):
        call_deprecated(module, category)


@pytest.mark.parametrize("module", ["torch.nn", "megatron.core", "tests.ranks"])
def test_others_are_not(module):
    call_deprecated(module, DeprecationWarning)
    call_deprecated(module, FutureWarning)


@pytest.mark.parametrize("category", CATEGORIES)
def test_on_ranks_too(category, ranks):
    assert ranks(2, noticed_on_a_rank, category) == [True, True]

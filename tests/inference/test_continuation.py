"""Token by token: limits, ends, and sampling that does not depend on what else is in the batch."""

import torch

from megatron_sky.inference.continuation import Request, continue_texts

VOCAB = 20


class Counting:
    """Its likeliest token is the last one plus one; the others are equally likely, with ids beyond the vocabulary."""

    device = torch.device("cpu")

    def next_logits(self, tokens, places):
        self.rows = len(places)
        logits = torch.zeros(len(places), VOCAB + 5)
        logits[:, VOCAB + 1] = 9.0  # a padding row that a careless choice would take
        following = (tokens.flatten()[places] + 1) % VOCAB
        logits[torch.arange(len(places)), following] = 5.0
        return logits


def never(new: list[int]) -> bool:
    return False


def run(*requests: Request, seed: int = 1) -> list[list[int]]:
    return continue_texts(Counting(), requests, vocab_size=VOCAB, seed=seed)


def test_each_ends_at_its_limit_or_where_it_is_told():
    first, second, none = run(
        Request([1, 2], 3, 0.0, never), Request([10], 9, 0.0, lambda new: new[-1] == 12), Request([4], 0, 0.0, never)
    )
    assert (first, second, none) == ([3, 4, 5], [11, 12], [])


def test_rows_of_different_lengths_do_not_touch_each_other():
    alone = run(Request([7], 4, 0.0, never))
    assert run(Request(list(range(15)), 4, 0.0, never), Request([7], 4, 0.0, never))[1] == alone[0]


def test_what_is_sampled_depends_on_the_seed_alone():
    request = Request([3], 12, 2.0, never)
    (alone,) = run(request)
    assert run(Request([8], 2, 2.0, never), request)[1] == alone == run(request)[0]
    assert run(request, seed=2)[0] != alone
    assert max(alone) < VOCAB and alone != list(range(4, 16))


def test_only_those_that_go_on_are_computed():
    model = Counting()
    continue_texts(model, [Request([1], 1, 0.0, never), Request([1], 3, 0.0, never)], vocab_size=VOCAB, seed=1)
    assert model.rows == 1

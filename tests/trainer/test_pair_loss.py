"""The loss of a pair is Rafailov et al.'s, as TRL computes it (recorded), and the same however it is batched."""

import pytest
import torch
import torch.nn.functional as F

from megatron_sky.trainer.pair_loss import ANSWERS, SUMS, PairLoss, preference_of

# What DPOTrainer of TRL 1.16 (sigmoid loss) gave for six pairs of a small Llama: the answers' log-probabilities, chosen
# and rejected by turns, under the policy and the reference; its loss, and its mean rewards.
BETA = 0.2
TRL_POLICY = [-21.4672, -16.6294, -16.39, -25.1036, -23.0073, -28.9469]
TRL_POLICY += [-20.5361, -44.1219, -22.8205, -53.1576, -23.5917, -32.864]
TRL_BASE = [-25.5719, -18.8365, -19.7826, -22.3908, -20.1806, -29.8358]
TRL_BASE += [-19.511, -35.7563, -22.9457, -39.2572, -22.6313, -32.7587]
TRL_LOSS, TRL_CHOSEN, TRL_REJECTED, TRL_ACCURACY = 0.493384, 0.093673, -0.732931, 4 / 6

POLICY, BASE = [-4.0, -5.5, -7.25, -6.0], [-4.5, -5.0, -7.0, -6.5]


def test_it_is_what_trl_computes():
    losses, reference = -torch.tensor(TRL_POLICY)[None], torch.tensor(TRL_BASE)
    pair_loss = PairLoss(torch.ones_like(losses), torch.arange(12)[None], reference, BETA)
    loss, pairs, told = pair_loss(losses)
    assert pairs.item() == 6 and abs(loss.item() / 6 - TRL_LOSS) <= 1e-5
    preference = preference_of(told[SUMS].tolist())
    assert preference.reward_chosen == pytest.approx(TRL_CHOSEN, abs=1e-4)
    assert preference.reward_rejected == pytest.approx(TRL_REJECTED, abs=1e-4)
    assert preference.accuracy == pytest.approx(TRL_ACCURACY)


def micro_batch():
    """Losses of two rows of tokens whose answers' sums are POLICY; one token is nobody's, and one masked."""
    losses = torch.tensor([[1.0, 3.0, 5.5, 9.0], [7.25, 2.0, 4.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 0]])
    ids = torch.tensor([[0, 0, 1, 4], [2, 3, 3, 4]])
    return losses, PairLoss(mask, ids, torch.tensor(BASE), BETA)


def test_sums_are_of_each_answers_tokens():
    losses, pair_loss = micro_batch()
    loss, pairs, told = pair_loss(losses)
    assert pairs.item() == 2 and told[ANSWERS].tolist() == POLICY
    rewards = BETA * (torch.tensor(POLICY) - torch.tensor(BASE))
    assert abs(loss.item() + F.logsigmoid(rewards[0::2] - rewards[1::2]).sum().item()) < 1e-6
    preference = preference_of(told[SUMS].tolist())
    assert preference.reward_chosen == pytest.approx(0.025) and preference.reward_rejected == pytest.approx(0.0)
    assert preference.margin == pytest.approx(0.025) and preference.accuracy == 0.5


def test_gradients_reach_the_answers_tokens_alone():
    losses, pair_loss = micro_batch()
    pair_loss(losses)[0].backward()
    assert losses.grad[:, 3].tolist() == [0, 0]
    first, second = losses.grad[0, :2].tolist()
    assert first == second > 0 > losses.grad[0, 2]


def test_a_plain_loss_has_no_preference():
    assert preference_of([3.0, 4.0]) is None

"""Direct preference optimization (Rafailov et al. 2023, equation 7) over the pairs of a packed micro batch.

    loss = -log sigmoid(beta ((chosen - its reference) - (rejected - its reference)))

with the log-probabilities of whole answers, summed over their tokens. Chosen and rejected answers are by turns the
documents of a row, so that attention keeps them apart and every layout computes them as it computes any row.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_sky.monitor.metrics import Preference

SUMS, ANSWERS = "sums", "answers"


@dataclass(frozen=True)
class PairLoss:
    """megatron-core's loss function of a micro batch of pairs.

    Attributes:
        loss_mask: float32 `[b, s]`, 1 where the label is an answer's.
        answer_ids: int64 `[b, s]`, which of the batch's answers it is of; their number where it is of none.
        reference: float32 `[answers]`, chosen and rejected by turns.
    """

    loss_mask: Tensor
    answer_ids: Tensor
    reference: Tensor
    beta: float

    def __call__(self, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(the sum over pairs, their number, the sums that `preference_of` reads and each answer's log-probability).

        `losses`: of each token `[b, s]`, in nats.
        """
        log_probabilities = answer_sums(losses, self.loss_mask, self.answer_ids, len(self.reference))
        rewards = self.beta * (log_probabilities - self.reference)
        chosen, rejected = rewards[0::2], rewards[1::2]
        loss = -F.logsigmoid(chosen - rejected).sum()
        pairs = torch.tensor(len(chosen), dtype=torch.int, device=losses.device)
        with torch.no_grad():
            told = torch.stack([loss, pairs, chosen.sum(), rejected.sum(), (chosen > rejected).sum()]).float()
        return loss, pairs, {SUMS: told, ANSWERS: log_probabilities.detach()}


def answer_sums(losses: Tensor, loss_mask: Tensor, answer_ids: Tensor, answers: int) -> Tensor:
    """The log-probability of each of the batch's answers, float32 `[answers]`."""
    sums = torch.zeros(answers + 1, dtype=torch.float32, device=losses.device)
    return sums.index_add(0, answer_ids.flatten(), -(losses.float() * loss_mask).flatten())[:answers]


def preference_of(sums: list[float]) -> Preference | None:
    """The rewards' means of `PairLoss`'s sums over micro batches and ranks; None of a loss without pairs."""
    if len(sums) == 2:
        return None
    _, pairs, chosen, rejected, correct = sums
    pairs = pairs or float("nan")
    return Preference(
        reward_chosen=chosen / pairs,
        reward_rejected=rejected / pairs,
        margin=(chosen - rejected) / pairs,
        accuracy=correct / pairs,
    )

"""Signs that a benchmark was trained on, from losses on its train split, its test split and a reference set.

After the report's section 5.2: delta1 = L_test - L_ref, clearly negative where the test split leaked; delta2 =
L_test - L_train, clearly positive where the train split was trained on. A verdict asks more than a difference: its
whole confidence interval must lie beyond a margin, a fraction of L_ref. The three sets are also compared at equal
document lengths and token by token, since short documents and rare tokens have higher losses. No torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_sky.evaluate.bootstrap import Interval, interval, resample_counts, resampled_loss

TRAIN, TEST, REFERENCE = "train", "test", "reference"
SETS = (TRAIN, TEST, REFERENCE)
MARGIN = 0.05
CONFIDENCE = 0.95
_LENGTH_CLASSES = 8
_LEAST_COVERAGE = 0.5
_UNLIKE = 3.0  # a reference so many times as hard as both splits is another kind of text, as far as can be told
_MOST_TOKENS = 4096  # distinct ones in the token-matched comparison


@dataclass(frozen=True)
class SetLosses:
    """One set under one model: for each document its loss summed (nats) and its scored tokens, and, laid end to end,
    each token's id and loss."""

    loss_sums: np.ndarray
    tokens: np.ndarray
    ids: np.ndarray
    losses: np.ndarray

    @classmethod
    def of(cls, ids: Sequence[np.ndarray], losses: Sequence[np.ndarray]) -> "SetLosses":
        sums = np.array([loss.sum(dtype=np.float64) for loss in losses])
        return cls(sums, np.array([len(loss) for loss in losses]), np.concatenate(ids), np.concatenate(losses))

    @property
    def loss(self) -> float:
        """Nats per token, as the report and its published script take it."""
        return float(self.loss_sums.sum()) / int(self.tokens.sum())


@dataclass(frozen=True)
class Comparison:
    """Losses of the three sets and their differences, in nats per token.

    Attributes:
        basis: plain, length-matched or token-matched.
        coverage: fraction of the test split's tokens that the comparison rests on.
        test, train, reference, delta1, delta2: figures with intervals (their ends equal where only figures are known).
    """

    basis: str
    coverage: float
    test: Interval
    train: Interval
    reference: Interval
    delta1: Interval
    delta2: Interval


@dataclass(frozen=True)
class Verdict:
    """`finding` is one of the words below; `reason` says it with the figures."""

    finding: str
    reason: str


LEAKED, NOT_LEAKED, UNLIKE = "test data leaked", "no sign of a leak", "reference set not alike"
TRAINED, NOT_TRAINED = "trained on the train split", "no sign of training on it"
POSSIBLE = "possible, not certain"


def compare(sets: dict[str, SetLosses], *, seed: int = 0, confidence: float = CONFIDENCE) -> list[Comparison]:
    """The three comparisons of one model. A matched one is left out where the sets have nothing in common."""
    rng = np.random.default_rng(seed)
    counts = {name: resample_counts(len(sets[name].tokens), rng) for name in SETS}
    comparisons = [_plain(sets, counts, confidence)]
    for match in (_length_matched, _token_matched):
        matched = match(sets, counts, confidence)
        if matched is not None:
            comparisons.append(matched)
    return comparisons


def published(test: float, train: float, reference: float) -> Comparison:
    """A comparison of which only the three losses are known."""
    t, s, r = (Interval(loss, loss, loss) for loss in (test, train, reference))
    d1, d2 = test - reference, test - train
    return Comparison("published", 1.0, t, s, r, Interval(d1, d1, d1), Interval(d2, d2, d2))


def verdict_test(comparison: Comparison, margin: float = MARGIN) -> Verdict:
    """What delta1 says of the test split."""
    delta, limit = comparison.delta1, margin * comparison.reference.value
    shown = f"delta1 = L_test - L_ref = {_shown(delta)}"
    limit_shown = f"{limit:.3f} ({margin:.0%} of L_ref)"
    hardest = max(comparison.test.value, comparison.train.value)
    if comparison.reference.value > _UNLIKE * hardest:
        times = f"{comparison.reference.value / hardest:.1f} times as hard as either split"
        return Verdict(
            UNLIKE,
            f"{shown}: the reference is {times}: another kind of text, or both splits were learnt by heart; take a "
            "reference on which a model known to be clean does as on the test split",
        )
    if delta.high < -limit:
        return Verdict(
            LEAKED, f"{shown} is below -{limit_shown}: the test split is easier than samples made afterwards"
        )
    if delta.low > limit:
        reason = f"{shown} is above {limit_shown}: the reference is easier than the test split, so a leak could hide"
        return Verdict(UNLIKE, reason)
    if delta.value < -limit:
        return Verdict(POSSIBLE, f"{shown} is below -{limit_shown}, but its interval reaches above it")
    return Verdict(NOT_LEAKED, f"{shown} is not below -{limit_shown}")


def verdict_train(comparison: Comparison, margin: float = MARGIN) -> Verdict:
    """What delta2 says of the train split."""
    delta, limit = comparison.delta2, margin * comparison.reference.value
    shown = f"delta2 = L_test - L_train = {_shown(delta)}"
    limit_shown = f"{limit:.3f} ({margin:.0%} of L_ref)"
    if delta.low > limit:
        return Verdict(TRAINED, f"{shown} is above {limit_shown}: the train split is easier than the test split")
    if delta.value > limit:
        return Verdict(POSSIBLE, f"{shown} is above {limit_shown}, but its interval reaches below it")
    return Verdict(NOT_TRAINED, f"{shown} is not above {limit_shown}")


def judge(
    comparisons: Sequence[Comparison], verdict: Callable[[Comparison, float], Verdict], margin: float = MARGIN
) -> Verdict:
    """The verdict of the first comparison, tempered by the others that rest on at least half of the tokens.

    A finding that equal lengths or equal tokens do not bear out, or that only they show, is possible and not certain.
    """
    first, *others = [(one.basis, verdict(one, margin)) for one in comparisons if one.coverage >= _LEAST_COVERAGE]
    alarm = LEAKED if verdict is verdict_test else TRAINED
    differing = [(basis, other) for basis, other in others if (other.finding == alarm) != (first[1].finding == alarm)]
    if not differing:
        return first[1]
    reasons = [first[1].reason, *(f"{basis}, {other.reason}" for basis, other in differing)]
    return Verdict(POSSIBLE, "; ".join(reasons))


def _shown(delta: Interval) -> str:
    if delta.low == delta.high:
        return f"{delta.value:+.3f}"
    return f"{delta.value:+.3f} [{delta.low:+.3f}, {delta.high:+.3f}]"


def _comparison(basis: str, coverage: float, values: dict, resampled: dict, confidence: float) -> Comparison:
    def of(value, samples) -> Interval:
        return interval(value, samples, confidence)

    return Comparison(
        basis=basis,
        coverage=coverage,
        test=of(values[TEST], resampled[TEST]),
        train=of(values[TRAIN], resampled[TRAIN]),
        reference=of(values[REFERENCE], resampled[REFERENCE]),
        delta1=of(values[TEST] - values[REFERENCE], resampled[TEST] - resampled[REFERENCE]),
        delta2=of(values[TEST] - values[TRAIN], resampled[TEST] - resampled[TRAIN]),
    )


def _plain(sets: dict, counts: dict, confidence: float) -> Comparison:
    values = {name: sets[name].loss for name in SETS}
    resampled = {name: resampled_loss(sets[name].loss_sums, sets[name].tokens, counts[name]) for name in SETS}
    return _comparison("plain", 1.0, values, resampled, confidence)


def _length_matched(sets: dict, counts: dict, confidence: float) -> Comparison | None:
    """All sets' documents sorted into classes of length; each class weighs in each set as it does in the test split."""
    edges = np.unique(np.quantile(sets[TEST].tokens, np.linspace(0, 1, _LENGTH_CLASSES + 1)[1:-1]))
    kinds = {name: np.searchsorted(edges, sets[name].tokens, side="right") for name in SETS}
    return _matched("length-matched", _by_document(sets, kinds, len(edges) + 1), counts, confidence)


def _token_matched(sets: dict, counts: dict, confidence: float) -> Comparison | None:
    """Each token id's mean loss; each id weighs in each set as it does in the test split."""
    ids, often = np.unique(sets[TEST].ids, return_counts=True)
    common = np.isin(ids, sets[TRAIN].ids) & np.isin(ids, sets[REFERENCE].ids)
    kept = np.sort(ids[common][np.argsort(-often[common], kind="stable")[:_MOST_TOKENS]])
    if not len(kept):
        return None
    tables = {name: _by_token(sets[name], kept) for name in SETS}
    matched = _matched("token-matched", tables, counts, confidence)
    if matched is None:
        return None
    covered = float(tables[TEST][1].sum() / sets[TEST].tokens.sum())
    return Comparison(**(matched.__dict__ | {"coverage": covered}))


def _by_document(sets: dict, kinds: dict, num_kinds: int) -> dict:
    """Set -> (`[documents, kinds]` loss sums, the same of tokens): each document in the column of its kind."""
    tables = {}
    for name in SETS:
        place = np.arange(len(kinds[name])), kinds[name]
        sums, tokens = (np.zeros((len(kinds[name]), num_kinds), np.float32) for _ in range(2))
        sums[place], tokens[place] = sets[name].loss_sums, sets[name].tokens
        tables[name] = sums, tokens
    return tables


def _by_token(losses: SetLosses, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(`[documents, kept]` loss sums, the same of tokens) of one set."""
    document = np.repeat(np.arange(len(losses.tokens)), losses.tokens)
    column = np.searchsorted(kept, losses.ids)
    there = kept[np.minimum(column, len(kept) - 1)] == losses.ids
    flat = document[there] * len(kept) + column[there]
    shape = len(losses.tokens), len(kept)
    sums = np.bincount(flat, weights=losses.losses[there], minlength=shape[0] * shape[1])
    tokens = np.bincount(flat, minlength=shape[0] * shape[1])
    return sums.reshape(shape).astype(np.float32), tokens.reshape(shape).astype(np.float32)


def _matched(basis: str, tables: dict, counts: dict, confidence: float) -> Comparison | None:
    """The sets' losses with each kind (column) weighted by its tokens in the test split; kinds that a set lacks are
    left out. A resample that lacks a kind takes that set's own mean for it."""
    there = np.all([tokens.sum(0) > 0 for _, tokens in tables.values()], axis=0)
    if not there.any():
        return None
    weights = tables[TEST][1].sum(0, dtype=np.float64)
    coverage = float(weights[there].sum() / weights.sum())
    weights = weights[there] / weights[there].sum()
    values, resampled = {}, {}
    for name, (sums, tokens) in tables.items():
        sums, tokens = sums[:, there], tokens[:, there]
        means = sums.sum(0, dtype=np.float64) / tokens.sum(0, dtype=np.float64)
        values[name] = float(means @ weights)
        drawn_sums, drawn_tokens = counts[name] @ sums, counts[name] @ tokens
        drawn = np.divide(
            drawn_sums, drawn_tokens, out=np.broadcast_to(means, drawn_sums.shape).copy(), where=drawn_tokens > 0
        )
        resampled[name] = drawn @ weights
    return _comparison(basis, coverage, values, resampled, confidence)

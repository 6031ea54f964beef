"""How many of the first n samples come from each source: shares as whole numbers, and the tree that splits them."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHARE_UNIT = 1 << 31  # shares are whole numbers out of this, so that they sum exactly
_ROUNDING = 64 * float(np.finfo(np.float64).eps)
_FRACTION_BITS = 256  # of the inverse of a ramp; far under the least distance of two roots of such quadratics


@dataclass(frozen=True)
class Node:
    """A subtree of sources; `start` and `end` are its shares in SHARE_UNITs at the two ends of the run."""

    start: int
    end: int
    leaf: int | None = None
    children: "tuple[Node, Node] | None" = None

    @property
    def left(self) -> "Node":
        assert self.children is not None, "a leaf is not split"
        return self.children[0]

    @property
    def right(self) -> "Node":
        assert self.children is not None, "a leaf is not split"
        return self.children[1]

    def split(self, first: int, count: int, total: int) -> np.ndarray:
        """Of the node's first m samples, how many the left child gets, for m in `first .. first + count`."""
        if not self._has_constant_ratio:
            return self._split_ramps(first, count, total)
        numbers = np.arange(first, first + count + 1)
        part, whole = self._ratio
        exact = np.int64 if 2 * (first + count) * part + whole < 1 << 63 else object
        return ((2 * part * numbers.astype(exact) + whole) // (2 * whole)).astype(np.int64)

    def split_one(self, number: int, total: int) -> int:
        """`split` for m = `number` alone."""
        if not self._has_constant_ratio:
            return self._split_ramp(number, total)
        part, whole = self._ratio
        return (2 * part * number + whole) // (2 * whole)

    @property
    def _has_constant_ratio(self) -> bool:
        return self.left.start * self.end == self.left.end * self.start

    @property
    def _ratio(self) -> tuple[int, int]:
        return (self.left.start, self.start) if self.start else (self.left.end, self.end)

    def _split_ramps(self, first: int, count: int, total: int) -> np.ndarray:
        """`_split_ramp` of each: in floating point, and exactly where that leaves the whole number in doubt."""
        start, end, last = self.start / SHARE_UNIT, self.end / SHARE_UNIT, first + count
        left_start, left_end = self.left.start / SHARE_UNIT, self.left.end / SHARE_UNIT
        slope = 2 * (end - start) / total
        least = min(start * start + slope * number for number in (first, last))  # of what the root is taken of
        if least <= 0 or last > total * (start + end) / 2 * (1 - 1e-9):  # a share of 0, or the end of the run
            return np.array([self._split_ramp(number, total) for number in range(first, last + 1)])
        numbers = np.arange(first, last + 1, dtype=np.float64)
        root = numbers * slope
        root += start * start
        root = np.sqrt(root, out=root)
        root += start
        time = np.divide(numbers, root, out=root)
        time *= 2 / total
        left = time * (total * (left_end - left_start) / 2)
        left += total * left_start
        left *= time
        counts = np.rint(left)
        # Some 30 roundings; where the node's share falls, the root's own error grows as the root gets small.
        error = float(left[-1]) * _ROUNDING * (1 + start / math.sqrt(least)) + 1e-9
        left -= counts
        result = counts.astype(np.int64)
        for place in (np.abs(left, out=left) >= 0.5 - error).nonzero()[0]:
            result[place] = self._split_ramp(first + int(place), total)
        return result

    def _split_ramp(self, number: int, total: int) -> int:
        """round(T_left(T_node^-1(number))) for T(n) = (start * n + (end - start) * n^2 / (2 * total)) / SHARE_UNIT."""
        left, slope, scale = self.left, self.end - self.start, 1 << _FRACTION_BITS
        # slope * n^2 + 2 * total * start * n = 2 * total * SHARE_UNIT * number, in the form that keeps all digits
        area = 2 * total * SHARE_UNIT * number
        past_end = area - total * total * (self.start + self.end)
        if past_end > 0:  # rounding gave the node more than its share of the whole run: the ratio stays as at the end
            part = total * total * (left.start + left.end) * self.end + left.end * past_end
            whole = 2 * total * SHARE_UNIT * self.end  # not 0: a node that ends at 0 has a constant ratio
            return (2 * part + whole) // (2 * whole)
        root = math.isqrt(((total * self.start) ** 2 + slope * area) * scale**2)
        time = area * scale**2 // (root + total * self.start * scale) if number else 0
        twice = 2 * total * left.start * time * scale + (left.end - left.start) * time * time
        return (twice + total * SHARE_UNIT * scale**2) // (2 * total * SHARE_UNIT * scale**2)


def apportion(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers that sum to SHARE_UNIT: rounded down, what is left goes to the largest remainders."""
    exact = [weight * SHARE_UNIT for weight in normalised(weights)]
    parts = [math.floor(value) for value in exact]
    rest = SHARE_UNIT - sum(parts)
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in range(rest):
        parts[by_remainder[i % len(parts)]] += 1
    return parts


def normalised(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    assert total > 0, weights
    return [weight / total for weight in weights]


def _join(left: Node, right: Node) -> Node:
    return Node(left.start + right.start, left.end + right.end, children=(left, right))


def best_tree(leaves: list[Node]) -> Node:
    """The tree with the smallest error bound among those that set the s smallest sources apart at the top, one a level,
    and pair the rest as Huffman's code does."""
    ordered = sorted(leaves, key=lambda node: (node.start + node.end, node.leaf))
    best: Node | None = None
    bound = math.inf
    rest = Node(sum(leaf.start for leaf in ordered), sum(leaf.end for leaf in ordered))
    off = worst = 0.0  # of the levels at the top, which a tree shares with all that have more of them
    for apart, smallest in enumerate(ordered):
        if worst >= bound:
            break
        tree = _huffman(ordered[apart:])
        for leaf in reversed(ordered[:apart]):
            tree = _join(leaf, tree)
        if (its_bound := error_bound(tree)) < bound:
            best, bound = tree, its_bound
        below = Node(rest.start - smallest.start, rest.end - smallest.end)
        worst = max(worst, 0.5 + off * _largest_ratio(smallest, rest))
        off = 0.5 + off * _largest_ratio(below, rest)
        worst, rest = max(worst, off), below
    assert best is not None, "a plan has a source"
    return best


def _huffman(nodes: list[Node]) -> Node:
    """The two smallest joined until one is left; of equal ones the last that was joined goes first."""
    waiting = [(node.start + node.end, place, node) for place, node in enumerate(nodes)]
    for place in range(1, len(nodes)):
        first, second = heapq.heappop(waiting)[2], heapq.heappop(waiting)[2]
        joined = _join(first, second)
        heapq.heappush(waiting, (joined.start + joined.end, -place, joined))
    return waiting[0][2]


def error_bound(tree: Node) -> float:
    """Half a sample is lost at a node's own split, and of what its parent is off, its largest share of the parent.

    The shares are taken where each is largest: on a ramp, an error of a parent moves its child to another moment.
    """
    worst = 0.0
    pending = [(tree, worst)]
    while pending:
        node, off = pending.pop()
        worst = max(worst, off)
        if node.leaf is None:
            pending += [(child, 0.5 + off * _largest_ratio(child, node)) for child in (node.left, node.right)]
    return worst


def _largest_ratio(child: Node, node: Node) -> float:
    """Of two straight lines the ratio is largest at one of the ends."""
    ends = [(child.start, node.start), (child.end, node.end)]
    return max((part / whole for part, whole in ends if whole), default=0.0)

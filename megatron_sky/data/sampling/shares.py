"""How many of the first n samples come from each source: shares as whole numbers, and the tree that splits them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHARE_UNIT = 1 << 31  # shares are whole numbers out of this, so that they sum exactly
_FRACTION_BITS = 256  # of the inverse of a ramp; far under the least distance of two roots of such quadratics


@dataclass(frozen=True)
class Node:
    """A subtree of sources; `start` and `end` are its shares in SHARE_UNITs at the two ends of the run."""

    start: int
    end: int
    leaf: int | None = None
    left: "Node | None" = None
    right: "Node | None" = None

    def split(self, first: int, count: int, total: int) -> np.ndarray:
        """Of the node's first m samples, how many the left child gets, for m in `first .. first + count`."""
        left = self.left
        if left.start * self.end == left.end * self.start:  # a constant ratio
            part, whole = (left.start, self.start) if self.start else (left.end, self.end)
            exact = np.int64 if 2 * (first + count) * part + whole < 1 << 63 else object
            numbers = np.arange(first, first + count + 1, dtype=exact)
            return ((2 * part * numbers + whole) // (2 * whole)).astype(np.int64)
        return np.array([self._split_ramp(number, total) for number in range(first, first + count + 1)], dtype=np.int64)

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
    return Node(left.start + right.start, left.end + right.end, left=left, right=right)


def best_tree(leaves: list[Node]) -> Node:
    """The tree with the smallest error bound among those that set the s smallest sources apart at the top, one a level,
    and pair the rest as Huffman's code does."""
    ordered = sorted(leaves, key=lambda node: (node.start + node.end, node.leaf))
    candidates = []
    for apart in range(len(ordered)):
        tree = _huffman(ordered[apart:])
        for leaf in reversed(ordered[:apart]):
            tree = _join(leaf, tree)
        candidates.append(tree)
    return min(candidates, key=error_bound)


def _huffman(nodes: list[Node]) -> Node:
    nodes = list(nodes)
    while len(nodes) > 1:
        nodes.sort(key=lambda node: node.start + node.end)
        nodes = [_join(nodes[0], nodes[1]), *nodes[2:]]
    return nodes[0]


def error_bound(tree: Node) -> float:
    """Half a sample is lost at a node's own split, and of what its parent is off, its largest share of the parent.

    The shares are taken where each is largest: on a ramp, an error of a parent moves its child to another moment.
    """
    worst, pending = 0.0, [(tree, 0.0)]
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

"""Seeded bijections of a range, in constant memory."""

import hashlib

_MASK = (1 << 64) - 1


class Permutation:
    """A seeded bijection of `range(size)`, in constant memory: a Feistel network with cycle walking.

    Args:
        size: number of items, at least 1.
        key: whatever must give another order.
    """

    ROUNDS = 6

    def __init__(self, size: int, key: str):
        assert size >= 1, size
        self.size = size
        bits = max(4, (size - 1).bit_length())
        self._low_bits = bits // 2
        self._low_mask = (1 << self._low_bits) - 1
        self._high_mask = (1 << (bits - self._low_bits)) - 1
        digest = hashlib.shake_256(key.encode()).digest(8 * self.ROUNDS)
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(self.ROUNDS)]

    def __call__(self, item: int) -> int:
        assert 0 <= item < self.size, (item, self.size)
        item = self._network(item)
        while item >= self.size:  # walk the cycle back into the range; one more step on average, or 16 / size
            item = self._network(item)
        return item

    def _network(self, item: int) -> int:
        high, low = item >> self._low_bits, item & self._low_mask
        for number, key in enumerate(self._keys):
            if number % 2:
                low ^= _mix(high, key) & self._low_mask
            else:
                high ^= _mix(low, key) & self._high_mask
        return high << self._low_bits | low


def _mix(value: int, key: int) -> int:
    """A 64-bit finaliser (multiply and fold) of value and key."""
    value = ((value ^ key) * 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ value >> 32) * 0xD6E8FEB86659FD93) & _MASK
    return value ^ value >> 32

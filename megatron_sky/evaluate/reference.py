"""A reference set by templates: arithmetic word problems with fresh numbers, in the form of GSM8K's samples.

A model can't have seen them, so its loss on them is what it would be on the benchmark's test split, had that not
leaked. Each is a question, an answer worked out step by step with `<<a*b=c>>` notes, and `#### result`. The same seed
gives the same documents.
"""

import random
from collections.abc import Callable, Iterator

GENERATORS = ("gsm8k-like",)

_NAMES = (
    *("Amara", "Bjorn", "Celine", "Dmitri", "Esi", "Farid", "Greta", "Hiro", "Ines", "Jamal", "Kavya", "Lars", "Mei"),
    *("Nadia", "Oskar", "Priya", "Quinn", "Rosa", "Sven", "Tariq", "Uma", "Viktor", "Wen", "Ximena", "Yusuf", "Zoe"),
)
_GOODS = (
    *("marbles", "stickers", "postcards", "seashells", "walnuts", "buttons", "candles", "notebooks"),
    *("pencils", "beads", "tulips", "apples", "coins", "badges", "magnets", "ribbons"),
)
_SHOPS = ("bakery", "bookshop", "flower stall", "toy shop", "hardware store", "market stand")
_WARES = (("muffin", "loaf"), ("novel", "atlas"), ("rose", "lily"), ("kite", "puzzle"), ("hammer", "paint roller"))
_PLACES = ("the library", "the lake", "her grandmother's farm", "the museum", "the next town")
_ROOMS = ("hall", "garden", "playground", "workshop", "courtyard")


def generate_documents(kind: str, count: int, seed: int) -> Iterator[str]:
    """`count` documents, no two the same."""
    assert kind in GENERATORS, kind
    rng = random.Random(f"{kind}/{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        text = rng.choice(_TEMPLATES)(rng)
        if text not in seen:
            seen.add(text)
            yield text


def _sum(a: int, sign: str, b: int) -> str:
    """`3*4=<<3*4=12>>12`, the way GSM8K notes a calculation."""
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
    return f"{a}{sign}{b} = <<{a}{sign}{b}={value}>>{value}"


def _document(question: str, steps: list[str], result: int) -> str:
    return f"{question} {chr(10).join(steps)}\n#### {result}"


def _boxes(rng: random.Random) -> str:
    name, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    boxes, each, given = rng.randint(3, 19), rng.randint(6, 48), rng.randint(5, 17)
    return _document(
        f"{name} keeps {goods} in {boxes} boxes, with {each} {goods} in each box. {name} gives {given} {goods} to a "
        f"friend. How many {goods} does {name} have left?",
        [
            f"At first {name} has {_sum(boxes, '*', each)} {goods}.",
            f"After the gift {name} has {_sum(boxes * each, '-', given)} {goods} left.",
        ],
        boxes * each - given,
    )


def _wages(rng: random.Random) -> str:
    name, rate, hours, weeks = rng.choice(_NAMES), rng.randint(9, 38), rng.randint(4, 36), rng.randint(2, 9)
    spent = rng.randint(20, rate * hours)
    return _document(
        f"{name} earns ${rate} an hour and works {hours} hours a week. After {weeks} weeks {name} spends ${spent} on a "
        "present. How much of the money is left?",
        [
            f"In a week {name} earns {_sum(rate, '*', hours)} dollars.",
            f"In {weeks} weeks that makes {_sum(rate * hours, '*', weeks)} dollars.",
            f"After the present there are {_sum(rate * hours * weeks, '-', spent)} dollars left.",
        ],
        rate * hours * weeks - spent,
    )


def _shopping(rng: random.Random) -> str:
    name, shop = rng.choice(_NAMES), rng.choice(_SHOPS)
    first, second = rng.choice(_WARES)
    a, b, pa, pb = rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 14), rng.randint(3, 25)
    return _document(
        f"At a {shop} a {first} costs ${pa} and a {second} costs ${pb}. {name} buys {a} of the first kind and {b} of "
        "the second. What does the whole purchase cost?",
        [
            f"The first kind costs {_sum(a, '*', pa)} dollars.",
            f"The second kind costs {_sum(b, '*', pb)} dollars.",
            f"Together that is {_sum(a * pa, '+', b * pb)} dollars.",
        ],
        a * pa + b * pb,
    )


def _journey(rng: random.Random) -> str:
    name, place = rng.choice(_NAMES), rng.choice(_PLACES)
    speed, hours, slow, more = rng.randint(20, 75), rng.randint(2, 6), rng.randint(8, 19), rng.randint(1, 4)
    return _document(
        f"{name} travels to {place}. For the first {hours} hours the speed is {speed} miles an hour, and for the last "
        f"{more} it is {slow} miles an hour. How many miles long is the way?",
        [
            f"The first part is {_sum(speed, '*', hours)} miles long.",
            f"The last part is {_sum(slow, '*', more)} miles long.",
            f"The whole way is {_sum(speed * hours, '+', slow * more)} miles long.",
        ],
        speed * hours + slow * more,
    )


def _sharing(rng: random.Random) -> str:
    name, goods, friends, each = rng.choice(_NAMES), rng.choice(_GOODS), rng.randint(3, 14), rng.randint(4, 29)
    lost = rng.randint(2, 16)
    total = friends * each + lost
    return _document(
        f"{name} found {total} {goods}. {lost} of them were broken and were thrown away. The others were shared "
        f"equally among {friends} children. How many {goods} did each child get?",
        [
            f"There were {_sum(total, '-', lost)} {goods} that were not broken.",
            f"Each child got {_sum(total - lost, '/', friends)} {goods}.",
        ],
        each,
    )


def _ages(rng: random.Random) -> str:
    (one, two), age, times, years = rng.sample(_NAMES, 2), rng.randint(5, 17), rng.randint(2, 4), rng.randint(2, 12)
    return _document(
        f"{one} is {age} years old, and {two} is {times} times as old. How old will {two} be in {years} years?",
        [
            f"{two} is now {_sum(age, '*', times)} years old.",
            f"In {years} years {two} will be {_sum(age * times, '+', years)} years old.",
        ],
        age * times + years,
    )


def _floor(rng: random.Random) -> str:
    room, long, wide, price = rng.choice(_ROOMS), rng.randint(6, 32), rng.randint(4, 21), rng.randint(3, 18)
    return _document(
        f"A {room} is {long} feet long and {wide} feet wide. New tiles cost ${price} for a square foot. How much do "
        f"the tiles for the whole {room} cost?",
        [
            f"The {room} has an area of {_sum(long, '*', wide)} square feet.",
            f"The tiles cost {_sum(long * wide, '*', price)} dollars.",
        ],
        long * wide * price,
    )


def _saving(rng: random.Random) -> str:
    name, months, each = rng.choice(_NAMES), rng.randint(3, 14), rng.randint(12, 85)
    extra = rng.randint(10, 60)
    return _document(
        f"{name} is saving for a bicycle. Every month {name} puts ${each} aside, and an aunt adds ${extra} once. How "
        f"much is there after {months} months?",
        [
            f"In {months} months {name} puts {_sum(months, '*', each)} dollars aside.",
            f"With the aunt's money there are {_sum(months * each, '+', extra)} dollars.",
        ],
        months * each + extra,
    )


_TEMPLATES: tuple[Callable[[random.Random], str], ...] = (
    _boxes,
    _wages,
    _shopping,
    _journey,
    _sharing,
    _ages,
    _floor,
    _saving,
)

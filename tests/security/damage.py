"""Small files made strange: bytes changed, cut and repeated, and fields of another type or size."""

import json
import random
from collections.abc import Callable

import yaml

STRANGE = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1e308, -0.5, float("nan"), float("inf")),
    *("", "x", "a" * 5000, "\x1b[2J", "../../other", "/etc/passwd", "\ud800", "1", "nan"),
    *([], {}, [[]], {"a": 1}, [None], [1, "a"], [{}], {"": []}),
)
Damage = Callable[[bytes, random.Random], bytes]


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _without(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 2, 8, 100)) :]


def _repeated(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((1, 4, 64))]
    return data[:start] + piece * rng.choice((2, 3, 2000)) + data[start:]


def _longer(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + bytes(rng.randrange(256) for _ in range(rng.choice((1, 8, 40)))) + data[start:]


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return bytes([rng.randrange(256)])
    if rng.random() < 0.02:
        return b""
    return rng.choice((_flip, _flip, _flip, _cut, _without, _repeated, _longer))(data, rng)


def _places(value: object) -> list[tuple[dict | list, object]]:
    """(container, key) of all that stands in a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in entries for place in [(value, key), *_places(inner)]]


def change_field(content: object, rng: random.Random) -> object:
    """A value with one of its fields replaced, left out, or doubled in depth."""
    places = _places(content)
    if not places or rng.random() < 0.03:
        return rng.choice(STRANGE)
    container, key = rng.choice(places)
    if rng.random() < 0.15:
        del container[key]
    elif rng.random() < 0.1:
        container[key] = [container[key]]
    else:
        container[key] = rng.choice(STRANGE)
    return content


def damage_json(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    return json.dumps(change_field(json.loads(data), rng)).encode()


def damage_lines(data: bytes, rng: random.Random) -> bytes:
    """A field of one line of JSON."""
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = json.dumps(change_field(json.loads(lines[place]), rng)).encode()
    return b"\n".join(lines) + b"\n"


def damage_yaml(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    return yaml.safe_dump(change_field(yaml.safe_load(data), rng)).encode("utf-8", "surrogatepass")


def damage_header(data: bytes, rng: random.Random) -> bytes:
    """A field of a safetensors file's header."""
    if rng.random() < 0.4:
        return damage_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change_field(json.loads(data[8 : 8 + length]), rng)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]

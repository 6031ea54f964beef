import json
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_sky.data.ingest import documents
from megatron_sky.data.ingest.documents import MAX_DEPTH, parse_block
from megatron_sky.data.ingest.inputs import Block

KEYS = [("text",), ("text", "o"), ("text", "text"), ("a/b",), ("文",)]


def parse(lines, keys=("text",), *, plain=True):
    with pytest.MonkeyPatch.context() as patch:
        if not plain:
            patch.setattr(documents, "_plain_document", lambda line, keys, spellings: None)
        return parse_block(Block("a.jsonl", lines=lines), keys)


def reasons(line):
    found = {tuple(reject.reason for reject in parse(line, plain=plain).rejects) for plain in (True, False)}
    assert len(found) == 1, (line[:80], found)
    return list(found.pop())


def nested(depth):
    """An object whose deepest list or object is `depth` deep."""
    return b'{"text": "ok", "o": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "ok", "o": "\xff"}', ["invalid_utf8"]),
        (b'{"text": "ok", "o\xff": 1}', ["invalid_utf8"]),
        (b'{"text": "ok", "o": "\xed\xa0\x80"}', ["invalid_utf8"]),  # a surrogate as UTF-8 would spell it
        (b'{"text": "ok", "o": "\\ud800"}', []),
        (b'{"text": "ok", "o": "\\q"}', ["not_json"]),
        (b'{"text": "ok", "o": "a\x01"}', ["not_json"]),
        (b'{"text": "ok", "o": ' + b"1" * 10_000 + b"}", []),
        (b'{"text": ' + b"1" * 10_000 + b"}", ["not_text"]),
        (b'{"text": 12}', ["not_text"]),
        (b'{"text": "ok", "o": NaN}', []),
        (nested(MAX_DEPTH), []),
        (nested(MAX_DEPTH + 1), ["not_json"]),
        (nested(200_000), ["not_json"]),
        (b'{"text": "' + rb"[\"[\\" * 2 * MAX_DEPTH + b'"}', []),  # brackets in a text nest nothing
        (b'{"text": "ok", "o": [' + b"{}, " * 2 * MAX_DEPTH + b"{}]}", []),
        (b'{"text": "a"}{"text": "b"}\n', ["not_json"]),
        (b'{"text": "a"}{"text": "b"}\n\n', ["not_json"]),
        (b'{"text":\n"a"}{"text": "b"}', ["not_json", "not_json"]),
    ],
    ids=lambda each: repr(each)[:40],
)
def test_odd_lines_are_judged_alike_both_ways(line, expected):
    assert reasons(line) == expected


def test_a_key_that_an_escape_spells_is_a_doubled_key():
    for key, disguised in (("a/b", r"a\/b"), ("文", r"\u6587"), ("text", r"te\u0078t")):
        line = f'{{"{key}": "x", "{disguised}": "y"}}'.encode()
        for plain in (True, False):
            assert [each.reason for each in parse(line, (key,), plain=plain).rejects] == ["duplicate_key"]


def test_the_depth_does_not_hang_on_the_callers_stack():
    def deeper(levels):
        return deeper(levels - 1) if levels else parse(nested(MAX_DEPTH - 1)).documents

    for levels in (0, sys.getrecursionlimit() // 8):
        assert deeper(levels) == [("ok",)]


# What may stand where, right and wrong; put together at random they make lines that are nearly plain.
STRINGS = [b'"ok"', '"文 é"'.encode(), b'"\xff"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\q"', b'"a\tb"', b'"a\0b"']
STRINGS += [b'""', b'"\\u0000"', b'"\\/"', b'"\\\\"', b'"\\""', b'"text"', b'"{["', b'"cut', b'"\xef\xbb\xbf"', b"'ok'"]
NUMBERS = [b"1", b"-0", b"01", b"1.", b".5", b"+1", b"1e5", b"1e", b"-", b"1e999", b"9" * 5000, b"NaN", b"-Infinity"]
OTHERS = [b"null", b"true", b"tru", b"[]", b"[1,]", b"{}", b'{"text": "x"}', b'["a", "b"]', b"{,}"]
OTHERS += [b"[" * 600 + b"]" * 600]
NAMES = [b'"text"', b'"o"', b'"a/b"', rb'"a\/b"', '"文"'.encode(), rb'"\u6587"', rb'"te\u0078t"', b"text"]
NAMES += [b'"\xff"', b'"text" ']
VALUES = st.sampled_from(STRINGS + NUMBERS + OTHERS) | st.text().map(lambda text: json.dumps(text).encode())
PAIRS = st.tuples(st.sampled_from(NAMES), st.sampled_from([b":", b": ", b" :\t", b"", b"::"]), VALUES).map(b"".join)
PLAIN = st.sampled_from([b'{"text": "ok"}', b'{"text": "ok", "o": "x"}', b'{"a/b": "ok"}', '{"文": "ok"}'.encode()])
OBJECTS = st.lists(st.just(b'"text": "ok"') | PAIRS, max_size=3).map(lambda pairs: b"{" + b", ".join(pairs) + b"}")
NEARLY = VALUES.map(lambda value: b'{"text": "ok", "o": ' + value + b"}")
ENDS = st.sampled_from([b"\n"] * 8 + [b"\n\n", b"", b"\r\n", b" \n", b"x\n", b"\x0b\n", b"\n \n", b"\n\xef\xbb\xbf"])
BLOCKS = st.lists(st.tuples(PLAIN | NEARLY | OBJECTS | VALUES, ENDS).map(b"".join), max_size=4).map(b"".join)


@settings(max_examples=1000, deadline=None)
@given(lines=BLOCKS, keys=st.sampled_from(KEYS))
@example(lines=b'{"text": "a", "o": "b"}\n' * 2, keys=("text", "o"))
@example(lines=b'{"text": "a", "o": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", keys=("text",))
def test_both_ways_agree_on_odd_lines(lines, keys):
    assert parse(lines, keys) == parse(lines, keys, plain=False)


def test_the_plain_way_is_taken():
    lines = (
        b'{"text": "a"}',
        b'{"text": "b\\n\\"", "o": [1, {"p": null}]}',
        '{"text": "文"}'.encode(),
        rb'{"text": "\u6587"}',
    )
    taken = [documents._plain_document(line, ("text",), (b'"text"',)) for line in lines]
    assert taken == [("a",), ('b\n"',), ("文",), ("文",)]
    assert documents._plain_document(b'{"q": "x", "a": "y"}', ("a", "q"), (b'"a"', b'"q"')) == ("y", "x")

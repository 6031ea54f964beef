"""What is printed is shown, in any encoding, and libraries find no way around."""

import io
import sys

import pytest

from megatron_sky.terminal import shown_output


def printed(text: str, encoding: str, monkeypatch) -> bytes:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    with shown_output():
        assert not hasattr(sys.stdout, "buffer") and not sys.stdout.isatty()
        sys.stdout.writelines([text, "\n"])
    assert sys.stdout is stream
    return stream.buffer.getvalue()


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("a\x1b[2J\tb", "utf-8", b"a\\x1b[2J\tb\n"),
        ("数据 \ud800", "utf-8", "数据 \\ud800\n".encode()),
        ("数据 é", "ascii", b"\\u6570\\u636e \\xe9\n"),
        ("数据 é", "gbk", "数据 é\n".encode("gbk")),
        ("na\udcff\udc9bme", "utf-8", b"na\xff\\udc9bme\n"),
    ],
)
def test_a_text_is_shown(text, encoding, shown, monkeypatch):
    assert printed(text, encoding, monkeypatch) == shown


def test_the_streams_come_back_after_an_error():
    before = sys.stdout, sys.stderr
    with pytest.raises(ValueError, match="x"), shown_output():
        raise ValueError("x")
    assert (sys.stdout, sys.stderr) == before

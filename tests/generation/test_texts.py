"""Text piece by piece: whole characters, stop texts that come in parts, and together what decoding gives at once."""

from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.generation.texts import TextStream, cut_at_stop


def decode_bytes(ids) -> str:
    return bytes(ids).decode("utf-8", "replace")


def streamed(text: str, stop=(), before: str = "") -> tuple[list[str], TextStream]:
    stream = TextStream(decode_bytes, before.encode(), stop)
    pieces = []
    for token in text.encode():
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


@given(st.text(), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_pieces_are_the_whole_up_to_the_first_stop(text, stop):
    pieces, stream = streamed(text, tuple(stop))
    expected, stopped = cut_at_stop(text, stop)
    assert stream.stopped == stopped
    if not stopped:
        assert "".join(pieces) == stream.text == text
    else:  # it stops with the first that is whole; another may have begun before it
        assert text.startswith(stream.text) and len(stream.text) >= len(expected)


def test_a_character_is_shown_when_it_is_whole():
    pieces, _ = streamed("a好b")
    assert pieces == ["a", "", "", "好", "b", ""]


def test_the_beginning_of_a_stop_is_held_back():
    pieces, _ = streamed("a##b###", ("###",))
    assert pieces == ["a", "", "", "##b", "", "", "", ""]
    assert "".join(streamed("x#", ("##",))[0]) == "x#"


def test_bytes_that_are_no_text_do_not_hold_up_the_rest():
    stream = TextStream(decode_bytes)
    pieces = [stream.push(token) for token in (0xFF, 0xFF, 0xFF, 0xFF, 97, 98)]
    assert "".join(pieces).endswith("ab")


def test_a_text_goes_on_behind_what_was_there():
    """As SentencePiece, whose first token of a text loses its space."""

    def decode(ids) -> str:
        return "".join({1: " a", 2: " b"}[token] for token in ids)[1:]

    assert TextStream(decode, [1]).push(2) == " b" and TextStream(decode).push(2) == "b"

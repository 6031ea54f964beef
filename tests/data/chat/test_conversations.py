"""Instruction data of every known form, and what is wrong with some of it."""

import pytest

from megatron_sky.data.chat.conversations import REASONS, Unusable, messages_of


def turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "加", "input": "1+1", "output": "2"}, turns("加\n1+1", "2")),
        ({"instruction": "hi", "input": "", "output": "ho"}, turns("hi", "ho")),
        (
            {"system": "s", "instruction": "b", "output": "c", "history": [["x", "y"]]},
            [{"role": "system", "content": "s"}, *turns("x", "y", "b", "c")],
        ),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, turns("a", "b")),
        ({"system": "s", "conversations": turns("a", "b")}, [{"role": "system", "content": "s"}, *turns("a", "b")]),
        ({"messages": turns("a", "b", "c", "d")}, turns("a", "b", "c", "d")),
        (turns("a", "b"), turns("a", "b")),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}, *turns("", "c")[1:]],
            turns("ab", "c"),
        ),
    ],
)  # fmt: skip
def test_known_forms(record, expected):
    assert messages_of(record) == expected


def test_tools_stay_text():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    answer = {"role": "tool", "content": {"weather": "晴"}}
    given = [*turns("a"), call, answer, *turns("", "b")[1:]]
    roles = [message["role"] for message in messages_of({"messages": given})]
    texts = [message["content"] for message in messages_of({"messages": given})]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert '"name": "f"' in texts[1] and texts[2] == '{"weather": "晴"}'


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "a"}, "no_conversation"),
        ("a", "no_conversation"),
        ({"messages": []}, "no_messages"),
        ({"messages": turns("a")}, "ends_with_user"),
        ({"messages": turns("a", "  ")}, "empty_answer"),
        ({"instruction": "a"}, "empty_answer"),
        ({"messages": [{"role": "critic", "content": "a"}]}, "unknown_role"),
        ({"messages": [{"content": "a"}]}, "unknown_role"),
        ({"messages": [*turns("a", "b"), {"role": "system", "content": "s"}]}, "misplaced_system"),
        ({"messages": [{"role": "user", "content": 3}]}, "not_text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not_text"),
        ({"messages": "abc"}, "not_text"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "not_text"),
        ({"messages": turns("a\0", "b")}, "nul"),
        ({"messages": turns("a", "\ud800")}, "invalid_utf8"),
    ],
)
def test_what_is_left_out(record, reason):
    with pytest.raises(Unusable) as told:
        messages_of(record)
    assert told.value.reason == reason and reason in REASONS

"""Chat templates: what they render, against transformers, and which text is the assistant's."""

import pytest

from megatron_sky.errors import DataError
from megatron_sky.tokenizer.chat_template import (
    BUILT_IN,
    FILE,
    ChatTemplate,
    find_template,
    template_beside,
    without_generation,
)

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And <b>?"},
    {"role": "assistant", "content": "Bye."},
]
WHOLE = {
    "skywork": "</s><s>[USER]Be brief.\n你好[SEP][BOT]Hello.[SEP][USER]And <b>?[SEP][BOT]Bye.[SEP]",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nAnd <b>?<|im_end|>\n"
    "<|im_start|>assistant\nBye.<|im_end|>\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n你好 [/INST] Hello. </s><s>[INST] And <b>? [/INST] Bye. </s>",
}
ANSWERS = {
    "skywork": ["Hello.[SEP]", "Bye.[SEP]"],
    "chatml": ["Hello.<|im_end|>", "Bye.<|im_end|>"],
    "llama2": [" Hello. </s>", " Bye. </s>"],
}
ENDS = {"skywork": "[SEP]", "chatml": "<|im_end|>", "llama2": "</s>"}


def answers(rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.answers]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates(name):
    template = find_template(name)
    rendered = template.render(TALK, special=SPECIAL)
    assert rendered.text == WHOLE[name]
    assert answers(rendered) == ANSWERS[name]
    assert template.end_of_turn(special=SPECIAL) == ENDS[name]
    prompt = template.prompt(TALK[:-1], special=SPECIAL)
    assert rendered.text.startswith(prompt) and rendered.text[len(prompt) :].startswith(ANSWERS[name][1])


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("prompted", [False, True])
def test_transformers_renders_the_same(name, prompted):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    kwargs = {"add_generation_prompt": prompted, "bos_token": "<s>", "eos_token": "</s>"}
    ours = find_template(name).render(TALK, special=SPECIAL, add_generation_prompt=prompted)
    texts, spans = utils.render_jinja_template(
        [TALK], chat_template=BUILT_IN[name], return_assistant_tokens_mask=True, **kwargs
    )
    assert [ours.text] == texts and list(map(tuple, spans[0])) == list(ours.answers)
    exported, _ = utils.render_jinja_template([TALK], chat_template=without_generation(BUILT_IN[name]), **kwargs)
    assert exported == texts


@pytest.mark.parametrize("name", BUILT_IN)
def test_without_marks_the_answers_are_what_each_adds_behind_its_prompt(name):
    template = ChatTemplate("plain", without_generation(BUILT_IN[name]))
    assert not template.marks_answers
    rendered = template.render(TALK, special=SPECIAL)
    assert [text.rstrip("\n") for text in answers(rendered)] == ANSWERS[name]


def test_a_template_that_changes_earlier_turns_must_mark_its_answers():
    text = "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ m.content }}|{% endif %}{% endfor %}"
    with pytest.raises(DataError, match=r"message 3 changes the text before it\n  fix: .*generation"):
        ChatTemplate("forgets", text).render(TALK, special=SPECIAL)
    assert ChatTemplate("forgets", text).prompt(TALK[1:2], special=SPECIAL) == "你好|"


def test_marks_hold_within_captured_blocks():
    text = "{% for m in messages %}{% set t %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}" + (
        "<{{ t }}>{% endfor %}"
    )
    assert answers(ChatTemplate("set", text).render(TALK[1:3], special={})) == ["你好", "Hello."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n{% for m in %}", "chat template t, line 2: "),
        ("{{ raise_exception('no such role') }}", "chat template t: no such role"),
        ("{{ messages[9].content.x }}", "chat template t: "),
        ("{{ 1 + 'a' }}", "chat template t: TypeError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat template t: .*unsafe"),
        ("{{ messages.append(1) }}", "chat template t: .*unsafe|not safely callable"),
    ],
)
def test_what_a_template_may_not_do_is_an_error_with_its_name(text, message):
    with pytest.raises(DataError, match=message):
        ChatTemplate("t", text).prompt(TALK, special=SPECIAL)


@pytest.mark.parametrize("name", ["skywork", "llama2"])
def test_a_role_that_a_form_has_no_words_for_is_refused(name):
    with pytest.raises(DataError, match="it has critic"):
        find_template(name).prompt([{"role": "critic", "content": ""}], special=SPECIAL)
    with pytest.raises(DataError, match="it has system"):
        find_template(name).prompt([*TALK, TALK[0]], special=SPECIAL)


def test_templates_are_found_by_name_file_and_beside_a_tokenizer(tmp_path):
    with pytest.raises(DataError, match="neither a file nor one of skywork, chatml, llama2"):
        find_template("vicuna")
    (tmp_path / "mine.jinja").write_text("{{ messages | tojson }}", encoding="utf-8")
    mine = find_template(str(tmp_path / "mine.jinja"))
    assert mine.prompt([{"role": "user", "content": "<好>"}], special={}) == '[{"role": "user", "content": "<好>"}]'
    assert template_beside(tmp_path) is None
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}]}')
    assert template_beside(tmp_path).text == "y"
    settings.write_text('{"chat_template": "z"}')
    assert template_beside(tmp_path) == ChatTemplate(str(settings), "z")
    (tmp_path / FILE).write_text("first")
    assert template_beside(tmp_path).text == "first"
    (tmp_path / FILE).write_bytes(b"\xff")
    with pytest.raises(DataError, match="can't be read"):
        template_beside(tmp_path)

"""A conversation as the text that a model reads, by a chat template: Jinja, in the form and sandbox of Hugging Face.

    template = find_template("chatml")            # a built-in name, or a file
    rendered = template.render(messages, special={"bos_token": "<s>", "eos_token": "</s>"})
    rendered.text, rendered.answers               # the text, and which characters of it the assistant says

`{% generation %} ... {% endgeneration %}` surrounds what the assistant says, the end of its turn included. Of a
template without it, the answers are what each message of the assistant adds behind the prompt for it, as long as a
conversation's beginning is rendered as the beginning of the whole.
"""

import functools
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megatron_sky.errors import DataError
from megatron_sky.files import read_text
from megatron_sky.tokenizer import files as tokenizer_files

FILE = tokenizer_files.CHAT_TEMPLATE
_MOST_CHARACTERS = 1 << 20  # of a template

# `[USER]question[SEP][BOT]answer[SEP]...`, begun with eos then bos. A system prompt goes before the first question.
SKYWORK = (
    "{{ eos_token }}{{ bos_token }}"
    "{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and loop.first %}{% set ns.system = message['content'] + '\\n' %}"
    "{% elif message['role'] in ('user', 'tool') %}[USER]{{ ns.system }}{{ message['content'] }}[SEP]"
    "{% set ns.system = '' %}"
    "{% elif message['role'] == 'assistant' %}[BOT]"
    "{% generation %}{{ message['content'] }}[SEP]{% endgeneration %}"
    "{% else %}{{ raise_exception('a conversation has the roles user, assistant and tool, and may begin with system; "
    "it has ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[BOT]{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}{{ '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] }}<|im_end|>{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and loop.first %}"
    "{% set ns.system = '<<SYS>>\\n' + message['content'] | trim + '\\n<</SYS>>\\n\\n' %}"
    "{% elif message['role'] in ('user', 'tool') %}"
    "{{ bos_token }}[INST] {{ ns.system }}{{ message['content'] | trim }} [/INST]{% set ns.system = '' %}"
    "{% elif message['role'] == 'assistant' %}"
    "{% generation %} {{ message['content'] | trim }} {{ eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('a conversation has the roles user, assistant and tool, and may begin with system; "
    "it has ' + message['role']) }}"
    "{% endif %}{% endfor %}"
)
BUILT_IN = {"skywork": SKYWORK, "chatml": CHATML, "llama2": LLAMA2}
SYMBOLS = {"skywork": ("[USER]", "[BOT]", "[SEP]"), "chatml": ("<|im_start|>", "<|im_end|>"), "llama2": ()}
"""Texts of the built-in templates that a tokenizer should have as tokens of their own."""

Message = Mapping[str, object]


@dataclass(frozen=True)
class Rendered:
    """A conversation's text. `answers`: from and to which character the assistant speaks, in order."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ChatTemplate:
    """A template's Jinja text. `name`: a built-in one's, or the file that it is from."""

    name: str
    text: str

    @property
    def marks_answers(self) -> bool:
        """Whether it says itself what the assistant's are."""
        return re.search(r"\{%-?\s*generation\b", self.text) is not None

    def render(
        self,
        messages: Sequence[Message],
        *,
        special: Mapping[str, str | None],
        add_generation_prompt: bool = False,
        **variables: object,
    ) -> Rendered:
        """The conversation `messages` (`role`, `content`) as text.

        `special`: `bos_token`, `eos_token` and the like, as the tokenizer spells them. `variables`: what else the
        template may ask for (`tools`). Raises DataError where the template fails or refuses the conversation; or where
        it marks no answers and a longer conversation changes what went before.
        """
        given = dict(variables, special=special)
        marked = self._fill(messages, add_generation_prompt, given)
        if self.marks_answers:
            return _without_marks(marked)
        return Rendered(marked, self._answers_by_length(messages, given, marked))

    def prompt(self, messages: Sequence[Message], *, special: Mapping[str, str | None], **variables: object) -> str:
        """The text that an answer of the assistant follows. Raises DataError."""
        return _without_marks(self._fill(messages, True, dict(variables, special=special))).text

    def end_of_turn(self, *, special: Mapping[str, str | None]) -> str:
        """What follows an answer's text, spaces around it taken away: `[SEP]`, `<|im_end|>`; may be empty."""
        content = secrets.token_hex(8)
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
        text = _without_marks(self._fill(turn, False, {"special": special})).text
        return text.rpartition(content)[2].strip() if content in text else ""

    def _fill(self, messages: Sequence[Message], add_generation_prompt: bool, given: Mapping) -> str:
        variables = {"tools": None, "documents": None} | {name: given[name] for name in given if name != "special"}
        special = {name: text for name, text in given["special"].items() if text is not None}
        try:
            compiled = _compiled(self.text)
            return compiled.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **special, **variables
            )
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"chat template {self.name}, line {error.lineno}: {error.message}") from error
        except jinja2.TemplateError as error:
            raise DataError(f"chat template {self.name}: {error.message or type(error).__name__}") from error
        except Exception as error:  # whatever an expression of the template causes
            raise DataError(f"chat template {self.name}: {type(error).__name__}: {error}") from error

    def _answers_by_length(self, messages: Sequence[Message], given: Mapping, whole: str) -> tuple:
        """Where each answer lies: behind the prompt made of the messages before it, up to where it is in the text."""
        answers = []
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            before = self._fill(messages[:number], True, given)
            until = self._fill(messages[: number + 1], False, given)
            if not (until.startswith(before) and whole.startswith(until)):
                raise DataError(
                    f"chat template {self.name}: does not say which text is the assistant's, and message {number + 1} "
                    "changes the text before it\n  fix: surround it by {% generation %} and {% endgeneration %}"
                )
            answers.append((len(before), len(until)))
        return tuple(answers)


def find_template(given: str) -> ChatTemplate:
    """A built-in template by its name, or the one in a file. Raises DataError."""
    if given in BUILT_IN:
        return ChatTemplate(given, BUILT_IN[given])
    path = Path(given)
    if not path.is_file():
        raise DataError(
            f"chat template {given!r}: is neither a file nor one of {', '.join(BUILT_IN)}\n  fix: give one of them"
        )
    return ChatTemplate(given, _read(path))


def template_beside(folder: Path) -> ChatTemplate | None:
    """The chat template that a tokenizer's files in `folder` hold; None where they have none. Raises DataError."""
    if (folder / FILE).is_file():
        return ChatTemplate(str(folder / FILE), _read(folder / FILE))
    settings = folder / tokenizer_files.SETTINGS
    held = tokenizer_files.read_table(settings).get("chat_template")
    if isinstance(held, list):  # several by name
        held = next((entry.get("template") for entry in held if entry.get("name") == "default"), None)
    return ChatTemplate(str(settings), held) if isinstance(held, str) else None


def without_generation(text: str) -> str:
    """A template for tools that do not know `{% generation %}`."""
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text)


def _read(path: Path) -> str:
    try:
        return read_text(path, _MOST_CHARACTERS)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read: {error}") from error


class _Marks(Extension):
    """`{% generation %}`: puts a mark before and behind what is inside, which nobody who writes messages can guess."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)
    begin, end = (f"\0{secrets.token_hex(16)}\0" for _ in range(2))

    def parse(self, parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller) -> str:
        return f"{self.begin}{caller()}{self.end}"


def _without_marks(marked: str) -> Rendered:
    text, answers = "", []
    for piece in marked.split(_Marks.begin):
        inside, mark, behind = piece.partition(_Marks.end)
        if mark:
            answers.append((len(text), len(text) + len(inside)))
        text += inside + behind
    return Rendered(text, tuple(answers))


@functools.lru_cache(maxsize=16)
def _compiled(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Marks, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(text)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options) -> str:
    """Jinja's own writes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)

"""Questions of held-out conversations answered by models, and how many answers are the expected ones: `eval answers`.

Each conversation is asked up to its last answer, through the chat template, and answered greedily. An answer counts
where it is the expected one to the letter, but for spaces around it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from megatron_sky.data.chat.conversations import REASONS, Message, Unusable, messages_of
from megatron_sky.data.chat.records import read_records
from megatron_sky.data.ingest.input_files import list_files
from megatron_sky.errors import DataError
from megatron_sky.evaluate.models import open_models
from megatron_sky.evaluate.results import check_writable, write_text
from megatron_sky.evaluate.tables import Rows, markdown_table
from megatron_sky.files import json_text, read_json
from megatron_sky.records import read_record

if TYPE_CHECKING:
    from megatron_sky.inference.checkpoints import Checkpoint

FORMAT_VERSION: Final = 1
ANSWERS: Final = "answers"
_SAMPLES = 12  # that are kept, evenly spread over the questions


@dataclass(frozen=True)
class AnswerScore:
    """How many questions a model answered as expected."""

    model: str
    step: int | None
    consumed_tokens: int | None
    exact: int


@dataclass(frozen=True)
class AnswerSample:
    """A question, what was expected, and each model's answer."""

    question: str
    expected: str
    answers: list[str]


@dataclass(frozen=True)
class AnswerResults:
    """answers.json. `files`: of the `questions`; `scores` and samples' answers are in the order of the models."""

    kind: Literal["answers"]
    format_version: Literal[1]
    files: list[str]
    questions: int
    scores: list[AnswerScore]
    samples: list[AnswerSample]


def evaluate_answers(
    given: Sequence[str],
    files: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    chat_template: str | None = None,
    out: Path | None = None,
) -> AnswerResults:
    """What the checkpoints `given` answer to the conversations of `files`; written into `out` after each model.

    Raises DataError that names a conversation which has no last answer or leaves no room in the context.
    """
    checkpoints = open_models(given)
    conversations = read_conversations(files)
    if out is not None:
        check_writable(out)
    results = AnswerResults(ANSWERS, FORMAT_VERSION, [*map(str, files)], len(conversations), [], [])
    for checkpoint in checkpoints:
        answers = _answered(checkpoint, conversations, max_new_tokens, batch_size, chat_template)
        results = _with_model(results, checkpoint, conversations, answers)
        if out is not None:
            write_answers(results, out)
    return results


def read_conversations(files: Sequence[str]) -> list[list[Message]]:
    """The conversations of all files, in order. Raises DataError naming the first that is none."""
    found = []
    for path in list_files(files, outputs=[]).read:
        for record in read_records(path):
            try:
                if record.reason:
                    raise Unusable(record.reason)
                found.append(messages_of(record.value))
            except Unusable as error:
                place = f"{record.path}, line {record.line}"
                raise DataError(f"{place}: {REASONS[error.reason]}\n  fix: fix the line, or take it out") from None
    if not found:
        raise DataError(f"{', '.join(map(str, files))}: holds no conversation")
    return found


def _answered(
    checkpoint: "Checkpoint",
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    batch_size: int,
    chat_template: str | None,
) -> list[str]:
    from megatron_sky.generation.engine import Request
    from megatron_sky.generation.run import answer_all, open_engine
    from megatron_sky.generation.sampling import Sampling

    opened = open_engine(checkpoint.path, chat_template=chat_template)
    sampling = Sampling(max_new_tokens=max_new_tokens)
    requests = []
    for number, messages in enumerate(conversations, 1):
        ids = opened.encode_chat(messages[:-1])
        limit = min(max_new_tokens, opened.engine.context - len(ids))
        if limit < 1:
            raise DataError(
                f"conversation {number} is {len(ids):,} tokens before its last answer, which leaves none of the "
                f"context of {checkpoint.name} ({opened.engine.context:,})\n  fix: take it out"
            )
        requests.append(Request(ids, limit, stop=opened.stop_of_turn))
    answers = dict(answer_all(opened.engine, requests, sampling, batch_size))
    return [answers[number].text.strip() for number in range(len(requests))]


def _with_model(
    results: AnswerResults, checkpoint: "Checkpoint", conversations: Sequence[Sequence[Message]], answers: list[str]
) -> AnswerResults:
    expected = [messages[-1]["content"].strip() for messages in conversations]
    exact = sum(answer == wanted for answer, wanted in zip(answers, expected, strict=True))
    score = AnswerScore(checkpoint.name, checkpoint.step, checkpoint.consumed_tokens, exact)
    step = max(1, len(expected) // _SAMPLES)
    samples = [
        AnswerSample(
            conversations[number][-2]["content"] if len(conversations[number]) > 1 else "",
            expected[number],
            [*(results.samples[place].answers if results.scores else []), answers[number]],
        )
        for place, number in enumerate(range(0, len(expected), step))
    ]
    return replace(results, scores=[*results.scores, score], samples=samples[: 2 * _SAMPLES])


def write_answers(results: AnswerResults, out: Path) -> None:
    """answers.json and answers.md into `out`. Raises RunError."""
    write_text(out / "answers.json", json_text(asdict(results), indent=1) + "\n")
    write_text(out / "answers.md", answers_markdown(results))


def read_answers(path: Path) -> AnswerResults:
    """answers.json (or the folder that holds it). Raises DataError."""
    path = path / "answers.json" if path.is_dir() else path
    try:
        return read_record(AnswerResults, read_json(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as answers: {error}\n  fix: evaluate again") from error


def answers_markdown(results: AnswerResults) -> str:
    return f"{markdown_table(*answer_rows(results))}\n\n{markdown_table(*sample_rows(results))}\n"


def answer_rows(results: AnswerResults) -> Rows:
    """A row for each model."""
    rows = [
        [score.model, f"{score.exact / results.questions:.1%}", f"{score.exact:,}", f"{results.questions:,}"]
        for score in results.scores
    ]
    return ["model", "exact match", "exact", "questions"], rows


def sample_rows(results: AnswerResults) -> Rows:
    """A row for each question that was kept, a column for each model."""
    rows = [[_line(sample.question), _line(sample.expected), *map(_line, sample.answers)] for sample in results.samples]
    return ["question", "expected", *(score.model for score in results.scores)], rows


def _line(text: str) -> str:
    """A text in one row of a table."""
    words = " ".join(text.split())
    return words if len(words) <= 160 else words[:159] + "…"

"""How the next token is chosen, under transformers' names. No torch."""

from dataclasses import dataclass, fields

from megatron_sky.errors import ConfigError, Problem


@dataclass(frozen=True)
class Sampling:
    """Attributes:
    max_new_tokens: new tokens, at most; the context's end may come first.
    temperature: 0 takes the likeliest token.
    top_k, top_p, min_p: which tokens are chosen from; None: from all. They have no effect at temperature 0.
    repetition_penalty: 1 is none; tokens that were there already lose by it.
    no_repeat_ngram_size: no run of so many tokens comes twice; 0: may.
    num_beams: above 1 a beam search.
    length_penalty: of a beam search; above 0 prefers long texts.
    stop: texts that end a continuation and are no part of it.
    seed: of the sampling, of a whole batch; the texts of a batch are drawn together.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 1234

    def __post_init__(self) -> None:
        """Raises ConfigError with all that is out of range."""
        if problems := self._problems():
            raise ConfigError(problems)

    def _problems(self) -> list[Problem]:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "must be at least 1"),
            "temperature": (0 <= self.temperature <= 100, "must be from 0 to 100"),
            "top_k": (self.top_k is None or self.top_k >= 0, "must be at least 0"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "must be above 0, and at most 1"),
            "min_p": (self.min_p is None or 0 <= self.min_p <= 1, "must be from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty <= 100, "must be above 0, and at most 100"),
            "no_repeat_ngram_size": (self.no_repeat_ngram_size >= 0, "must be at least 0"),
            "num_beams": (1 <= self.num_beams <= 64, "must be from 1 to 64"),
            "seed": (0 <= self.seed < 1 << 63, "must be from 0 to 2^63 - 1"),
        }
        problems = [
            Problem("--" + name.replace("_", "-"), rule, value=getattr(self, name))
            for name, (holds, rule) in rules.items()
            if not holds
        ]
        if any(not text for text in self.stop):
            problems.append(Problem("--stop", "must not be empty", "leave it out"))
        return problems

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0

    def to_transformers(self) -> dict:
        """Arguments of transformers' GenerationConfig, without limits and ends. Its own top_k, 50, is not taken."""
        given: dict[str, object] = {
            "do_sample": self.samples,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }
        if self.num_beams > 1:
            given["length_penalty"] = self.length_penalty
        if self.samples:
            given |= {"temperature": self.temperature, "top_k": self.top_k or 0, "top_p": self.top_p or 1.0}
            given |= {} if self.min_p is None else {"min_p": self.min_p}
        return given


NAMES = tuple(field.name for field in fields(Sampling))

"""The corpus recipe: sources, the thresholds of each stage, and outputs by domain.

The same loader, style and errors as a training recipe (`config.load`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from megatron_sky.config.load import load_as, split_arguments
from megatron_sky.config.sections.base import FilePath, Line, Positive, Section, check_unique
from megatron_sky.config.units import TokenCount
from megatron_sky.records import more_than_once


def _template(text: str) -> str:
    if text.count("{zh}") != 1 or text.count("{en}") != 1:
        raise ValueError("must hold {zh} and {en}, each once")
    return text


Kind = Literal["warc", "wet", "jsonl", "parquet", "html", "code", "parallel"]
Language = Literal["zh", "en", "other", "code", "zh-en"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]+$")]
Share = Annotated[float, Field(ge=0, le=1)]
Template = Annotated[str, AfterValidator(_template)]
MOST_REPETITIONS = 5
"""Of a high-quality source, as in the Skywork report (section 3.1)."""


class CorpusSource(Section):
    """One origin of documents."""

    name: Name = Field(description="Name in the account and in outputs' rules.")
    kind: Kind = Field(
        description="warc: crawl responses; wet: crawl texts; jsonl (.gz, .bz2, .xz, .zst); parquet; html: a folder of "
        "pages; code: a tree of source files; parallel: pairs of Chinese and English texts, as .tsv, jsonl, or files "
        "NAME.zh and NAME.en of the same number of lines (.gz, .bz2, .xz, .zst)."
    )
    paths: tuple[FilePath, ...] = Field(min_length=1, description="Files, folders and globs.")
    text_key: Line = Field("text", description="Field of the text, of jsonl and parquet.")
    url_key: Line = Field("url", description="Field of the address, of jsonl and parquet; may be absent.")
    date_key: Line = Field("date", description="Field of the date, of jsonl and parquet; may be absent.")
    zh_key: Line = Field("zh", description="Field of the Chinese text, of parallel jsonl; a dot leads into an object.")
    en_key: Line = Field("en", description="Field of the English text, of parallel jsonl; a dot leads into an object.")
    columns: tuple[Positive, Positive] = Field((1, 2), description="Columns of Chinese and English, of .tsv, from 1.")
    templates: tuple[Template, ...] = Field(
        ("{zh}\n{en}", "{en}\n{zh}"),
        min_length=1,
        description="How a pair becomes a document; which one is used follows from the pair's hash.",
    )
    html: bool = Field(False, description="The text of jsonl or parquet is HTML, and its main text is extracted.")
    license: Line = Field("unknown", description="Licence of the documents, for the data card.")


class ReadConfig(Section):
    """What is taken from the sources."""

    max_document_bytes: TokenCount = Field(10_000_000, description="Longer documents are dropped, in bytes as stored.")
    unit_bytes: TokenCount = Field(
        256_000_000, description="Stored bytes of one task's input; the result does not depend on it."
    )
    blocked_domains: tuple[Line, ...] = Field((), description="Hosts that are dropped, with their subdomains.")
    blocked_domains_file: FilePath | None = Field(None, description="More of them, one a line; null: none.")


class ExtractConfig(Section):
    """Main text out of HTML."""

    engine: Literal["resiliparse", "trafilatura"] = Field(
        "resiliparse", description="resiliparse: fast, keeps lists and code; trafilatura: more exact, 20 times slower."
    )
    timeout_seconds: float = Field(20.0, gt=0, description="Of one page; a page that takes longer is dropped.")


class LanguageConfig(Section):
    """Which languages are kept."""

    keep: tuple[Literal["zh", "en", "other"], ...] = Field(("zh", "en"), description="Languages of documents to keep.")
    drop_paragraphs: bool = Field(
        False, description="Cut paragraphs of 100 characters or more in a language that is not kept."
    )
    simplify: bool = Field(False, description="Traditional Chinese becomes Simplified, by phrases and characters.")


class Thresholds(Section):
    """Rules for running text of one language; a share is of characters where nothing else is said."""

    min_length: Positive = Field(description="Characters, white space aside.")
    max_length: Positive = Field(1_000_000, description="Characters, white space aside.")
    max_symbol_share: Share = Field(0.10, description="Signs that are neither letters, digits nor common punctuation.")
    max_digit_share: Share = Field(0.3, description="Digits.")
    max_bullet_share: Share = Field(0.9, description="Of lines: those that begin with a bullet.")
    max_ellipsis_share: Share = Field(0.3, description="Of lines: those that end with an ellipsis.")
    max_repeated_lines: Share = Field(0.3, description="Of lines: those that came before in the document.")
    max_repeated_line_characters: Share = Field(0.2, description="Characters in such lines.")
    max_repeated_grams: Share = Field(description="Characters in n-grams that came before (10 words or 20 characters).")
    max_list_share: Share = Field(0.8, description="Of lines: short ones without an end of a sentence.")
    min_stop_words: int = Field(2, description="Different function words that must occur.")
    max_advertisements: float = Field(description="Advertising and SEO phrases per 1,000 characters.")
    max_mojibake: float = Field(2.0, description="Wrongly decoded places per 1,000 characters.")


class ChineseThresholds(Thresholds):
    """Rules for Chinese text."""

    min_length: Positive = Field(100, description="Characters, white space aside.")
    max_repeated_grams: Share = Field(0.25, description="Characters in n-grams that came before (20 characters).")
    max_advertisements: float = Field(5.0, description="Advertising and SEO phrases per 1,000 characters.")


class EnglishThresholds(Thresholds):
    """Rules for English text."""

    min_length: Positive = Field(200, description="Characters, white space aside.")
    max_repeated_grams: Share = Field(0.20, description="Characters in n-grams that came before (10 words).")
    max_advertisements: float = Field(3.0, description="Advertising and SEO phrases per 1,000 characters.")
    min_mean_word: float = Field(3.0, description="Characters of a word, on average.")
    max_mean_word: float = Field(10.0, description="Characters of a word, on average.")


class CodeThresholds(Section):
    """Rules for source files."""

    max_mean_line: Positive = Field(100, description="Characters of a line, on average.")
    max_line: Positive = Field(1000, description="Characters of the longest line.")
    min_alphanumeric_share: Share = Field(0.25, description="Letters and digits.")
    markup_shares: dict[Literal["json", "xml", "yaml", "html"], Share] = Field(
        {"json": 0.05, "xml": 0.05, "yaml": 0.1, "html": 0.1},
        description="Share of the files of such a kind that is kept, chosen by the content's hash.",
    )


class PairThresholds(Section):
    """Rules for pairs of a Chinese and an English text."""

    min_length: Positive = Field(2, description="Characters of each side, white space aside.")
    min_script_share: Share = Field(0.5, description="Of a side's letters: Chinese characters, Latin letters.")
    min_ratio: float = Field(1.0, gt=0, description="English characters for a Chinese one.")
    max_ratio: float = Field(10.0, gt=0, description="English characters for a Chinese one.")


class HeuristicsConfig(Section):
    """Rules by which a document's own text is judged."""

    enabled: bool = Field(True, description="Whether they are applied.")
    zh: ChineseThresholds = ChineseThresholds()
    en: EnglishThresholds = EnglishThresholds()
    code: CodeThresholds = CodeThresholds()
    pairs: PairThresholds = PairThresholds()


class PerplexityConfig(Section):
    """A KenLM language model of good text, and between which perplexities documents are kept."""

    model: FilePath = Field(description="KenLM's binary or ARPA file.")
    tokenizer: FilePath | None = Field(
        None,
        description="SentencePiece model whose pieces it knows; null: lower-case words and single Chinese characters.",
    )
    max: float = Field(gt=1, description="Perplexity of one token; documents above it are dropped.")
    min: float = Field(1.0, ge=1, description="Perplexity of one token; documents below it are dropped.")


class QualityConfig(Section):
    """Whether a document is worth training on, by a classifier and a language model of the user's."""

    classifier: FilePath | None = Field(None, description="File of `corpus train-classifier`; null: none.")
    min_score: dict[Literal["zh", "en"], Share] = Field(
        {}, description="Score of each language below which documents are dropped; others are not judged."
    )
    perplexity: dict[Literal["zh", "en"], PerplexityConfig] = Field(
        {}, description="Language model of each language; needs kenlm."
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> "QualityConfig":
        if (self.classifier is None) != (not self.min_score):
            raise ValueError("classifier and min_score (as {zh: 0.5, en: 0.5}) are given together or not at all")
        return self


class HeldOutConfig(Section):
    """Validation documents, taken before anything is compared; what is near to them leaves the training text."""

    share: Share = Field(0.0, description="Share of documents, chosen by their content's hash.")
    since: Line | None = Field(None, description="Documents of this date (YYYY-MM-DD) or later too; null: none.")


class RecurrenceConfig(Section):
    """Distribution filter: blocks of text that recur over the whole corpus."""

    enabled: bool = Field(True, description="Whether it is applied.")
    max_documents: Positive = Field(5, description="A paragraph of more documents than this is cut from all of them.")
    min_characters: Positive = Field(1, description="Shorter paragraphs are neither counted nor cut.")
    max_cut_share: Share = Field(0.7, description="A document that loses more of its characters is dropped.")
    min_length: Positive = Field(100, description="Characters; a document that was cut to fewer is dropped.")
    partitions: Positive = Field(16, description="Parts by hash that are counted one at a time; more take less memory.")


class NearDuplicatesConfig(Section):
    """Documents that are nearly the same, by MinHash; the best of each cluster is kept."""

    enabled: bool = Field(True, description="Whether they are looked for.")
    gram_size: Positive = Field(5, description="Words, or Chinese characters, of one n-gram.")
    num_buckets: Positive = Field(12, description="Bands of the signature.")
    hashes_per_bucket: Positive = Field(11, description="Hashes of a band: all must agree.")


class DuplicatesConfig(Section):
    """Documents that come more than once; the best of them is kept."""

    exact: bool = Field(True, description="Documents of the same letters and digits.")
    url: bool = Field(True, description="Documents of the same address.")
    near: NearDuplicatesConfig = NearDuplicatesConfig()
    partitions: Positive = Field(16, description="Parts by hash that are compared one at a time.")


class PrivacyConfig(Section):
    """Personal data that is masked."""

    emails: bool = Field(True, description="Addresses of electronic mail.")
    phones: bool = Field(True, description="Telephone numbers of China and the United States.")
    ids: bool = Field(True, description="Identity card numbers of China, social security numbers of the United States.")
    ips: bool = Field(True, description="Public internet addresses.")


class Benchmark(Section):
    """Texts that training must not see."""

    name: Name = Field(description="Name in the account.")
    paths: tuple[FilePath, ...] = Field(min_length=1, description="JSONL files.")
    keys: tuple[Line, ...] = Field(("text",), description="Fields whose texts are looked for, joined by a space.")


class DecontaminationConfig(Section):
    """Documents that share a long n-gram with a benchmark are dropped."""

    benchmarks: tuple[Benchmark, ...] = Field((), description="The benchmarks.")
    gram_size: Annotated[int, Field(ge=5, le=100)] = Field(13, description="Words or Chinese characters of one n-gram.")

    @model_validator(mode="after")
    def _unique_names(self) -> "DecontaminationConfig":
        check_unique("benchmark names", (benchmark.name for benchmark in self.benchmarks))
        return self


class CorpusOutput(Section):
    """One domain of the training mixture; a document goes to the first output whose rules it meets."""

    name: Name = Field(description="Name in the training mixture, and of the files.")
    sources: tuple[Name, ...] = Field((), description="Names of sources; none: all.")
    languages: tuple[Language, ...] = Field((), description="Languages; none: all.")
    hosts: tuple[Line, ...] = Field((), description="Hosts, with their subdomains; none: all.")
    repeat: Annotated[float, Field(gt=0, le=MOST_REPETITIONS)] = Field(
        1.0, description=f"Times that training may see it, at most {MOST_REPETITIONS}: its weight in the mixture."
    )


class TokensConfig(Section):
    """Token files of the outputs."""

    tokenizer: FilePath | None = Field(
        None, description="SentencePiece .model, tokenizer.json or .tiktoken file; null: texts alone are written."
    )


class SlurmConfig(Section):
    """Jobs of `--executor slurm`."""

    partition: Line = Field("cpu", description="Partition.")
    time: Line = Field("24:00:00", description="Time limit of a task.")
    cpus_per_task: Positive = Field(1, description="Cores of a task.")
    memory_gb: Positive = Field(4, description="Memory of a core, GB.")
    tasks_at_once: int = Field(-1, ge=-1, description="Tasks of an array that run at the same time; -1: no limit.")
    max_array_size: Positive = Field(1001, description="Slurm's MaxArraySize: larger arrays are split.")
    tasks_per_job: Positive = Field(1, description="Tasks that one job of an array does, one after the other.")
    qos: Line = Field("", description="Quality of service; empty: the cluster's default.")


class ExecutionConfig(Section):
    """How it is run; the result does not depend on it."""

    workers: int = Field(0, ge=0, description="Tasks at the same time on one machine; 0: all cores.")
    retries: int = Field(1, ge=0, description="How often a task that fails is run again.")
    keep_dropped: bool = Field(True, description="Dropped documents are kept with their reason, for inspection.")
    check_disk: bool = Field(
        True, description="A build that needs more disk space than is free, by an estimate, is refused."
    )
    slurm: SlurmConfig = SlurmConfig()


class CorpusRecipe(Section):
    """A whole corpus recipe."""

    out: FilePath = Field(description="Folder of the corpus.")
    sources: tuple[CorpusSource, ...] = Field(description="Where documents come from, in order.")
    read: ReadConfig = ReadConfig()
    extract: ExtractConfig = ExtractConfig()
    language: LanguageConfig = LanguageConfig()
    heuristics: HeuristicsConfig = HeuristicsConfig()
    quality: QualityConfig = QualityConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    recurrence: RecurrenceConfig = RecurrenceConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    decontamination: DecontaminationConfig = DecontaminationConfig()
    outputs: tuple[CorpusOutput, ...] = Field(description="Domains, in order: the first that fits.")
    tokens: TokensConfig = TokensConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @model_validator(mode="after")
    def _names_agree(self) -> "CorpusRecipe":
        names = [source.name for source in self.sources]
        wrong = [f"{key}: give at least one" for key in ("sources", "outputs") if not getattr(self, key)]
        wrong += [f"sources: the name {name!r} is given twice" for name in more_than_once(names)]
        wrong += [
            f"outputs: the name {name!r} is given twice" for name in more_than_once(one.name for one in self.outputs)
        ]
        for output in self.outputs:
            if unknown := sorted(set(output.sources) - set(names)):
                wrong.append(f"outputs.{output.name}.sources: {', '.join(unknown)} is no source ({', '.join(names)})")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def load_corpus_recipe(arguments: Sequence[str | Path]) -> CorpusRecipe:
    """The recipe of a command line: files, then `key=value`. Raises ConfigError with every problem."""
    files, overrides = split_arguments([str(argument) for argument in arguments])
    return load_as(CorpusRecipe, files, overrides)

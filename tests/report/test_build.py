"""One page for any run, whole or with parts missing; self-contained, escaped, written whole or not at all."""

import base64
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from megatron_sky.errors import RunError
from megatron_sky.evaluate.leakage import Verdict, published
from megatron_sky.evaluate.metrics import DocumentLoss, figures_of
from megatron_sky.evaluate.results import (
    DomainRecord,
    LeakageResults,
    LossResults,
    ModelLeakage,
    ModelLosses,
    ModelRecord,
    Setting,
    write_json,
)
from megatron_sky.monitor.metrics import MetricsWriter
from megatron_sky.report import build_report

EVIL = "<script>alert('&')</script>"


VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    @property
    def pictures(self):
        sources = [value for name, value in self.attributes if name == "src"]
        return [ElementTree.fromstring(base64.b64decode(each.split(",", 1)[1])) for each in sources]


def page_of(run_dir):
    return Page(build_report(run_dir).read_text(encoding="utf-8"))


def write_evaluations(folder):
    """A perplexity and a leakage file full of hostile names, and a file that is neither."""
    figures = figures_of([DocumentLoss(EVIL, 0, "0", 9, 9, 5, 5, 10.0)])
    model = ModelRecord(EVIL, warnings=(EVIL,))
    setting = Setting(4096, 1365, None, None, "auto", reference_tokenizer=EVIL)
    losses = ModelLosses(model, {EVIL: figures}, figures)
    write_json(LossResults(setting, (DomainRecord(EVIL, (EVIL,), 1, 0, 0),), (losses,)), folder)
    leaked = ModelLeakage(model, (published(1.0, 1.0, 1.0),), Verdict(EVIL, EVIL), Verdict(EVIL, EVIL))
    write_json(LeakageResults(0.05, 0.95, None, (), (leaked,)), folder)
    (folder / "other.json").write_text(json.dumps({EVIL: EVIL}))


def picture_text(picture):
    return " ".join(part.strip() for part in picture.itertext() if part.strip())


@pytest.fixture(scope="module")
def full(tmp_path_factory, write_run):
    mixture = [
        {"session": "one", "first_token": 0, "end_token": 60_000, "shares": {EVIL: [0.9, 0.6], "code": [0.1, 0.4]}},
        {"session": EVIL, "first_token": 60_000, "end_token": 200_000, "shares": {EVIL: [1.0, 1.0]}},
    ]
    references = [
        {"model": name, "set": set_name, "lm_loss": 4.0} for name in (EVIL, "模型") for set_name in ("code", EVIL)
    ]
    run_dir = write_run(
        tmp_path_factory.mktemp("runs") / "my run",
        losses=[9 / step for step in range(1, 121)],
        sets=("code", "_中文网页", EVIL),
        events=[
            ("start", {"step": 0, "layout": "TP2 x PP1"}),
            (
                "data",
                {
                    "sources": [{"name": EVIL, "tokens": 1}],
                    "unigram_entropy": 5.71,
                    "references": references,
                    "mixture": mixture,
                },
            ),
            ("session", {"step": 0, "session": "one", "first_token": 0, "end_token": 60_000}),
            ("session", {"step": 60, "session": EVIL, "first_token": 60_000, "end_token": 200_000}),
        ],
    )
    write_evaluations(run_dir / "eval")
    with MetricsWriter(run_dir, tensorboard=False, wandb=None, config={}) as metrics:
        metrics.event("resume", step=120, layout="TP1 x PP2", why=EVIL)
    samples = [
        {"language": "zh", "prompt": "今天", "text": "今天很好"},
        {"language": EVIL, "prompt": EVIL, "text": "x"},
    ]
    (run_dir / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    (run_dir / "config.yaml").write_text("train: {tokens: 5}\n# " + EVIL)
    (run_dir / "run.json").write_text(json.dumps({"versions": {"torch": "2.13"}, EVIL: EVIL}))
    return page_of(run_dir)


def test_a_text_cut_within_a_character_is_shown(tmp_path, write_run):
    """Half of a surrogate pair, which JSON can hold and UTF-8 can't."""
    run_dir = write_run(tmp_path, sets=("set \ud83d",))
    sample = {"language": "en", "prompt": "a", "text": "a cat \ud83d"}
    (run_dir / "samples.json").write_text(json.dumps([sample]), encoding="utf-8")
    for page_format in ("html", "md"):
        text = build_report(run_dir, page_format=page_format).read_text(encoding="utf-8")
        assert "cat ?" in text and "set ?" in text


def test_the_figures_have_units(full):
    for part in (
        "nats per token, mean of the last",
        "nats per token; the loss is",
        "of the time in steps and validation",
    ):
        assert part in full.text


def test_the_page_tells_everything(full):
    for part in (
        "my run",
        "the loss is",
        "under it",
        "TP2 x PP1 → TP1 x PP2",
        "_中文网页",
        "很好",
        "train: {tokens: 5}",
        "torch: 2.13",
        "resume",
        "unigram entropy of the training corpus",
    ):
        assert part in full.text, part
    titles = ["Training loss", "Validation loss by domain", "Mixture", "Learning rate", "Gradient norm", "Throughput"]
    assert all(title in full.text for title in titles) and len(full.pictures) == 6 + 2
    assert "unigram entropy 5.71" not in picture_text(full.pictures[0])
    headings = [
        "Sessions",
        "Validation loss beside other models",
        "Domain perplexity",
        "Leakage, nats per token",
        "Notes",
    ]
    assert all(heading in full.text for heading in headings)


def test_the_unigram_entropy_is_named_in_the_picture(tmp_path, write_run):
    page = page_of(write_run(tmp_path, events=[("data", {"unigram_entropy": 5.71})]))
    assert "unigram entropy 5.71" in picture_text(page.pictures[0])
    assert "unigram entropy" not in picture_text(page.pictures[1])


def test_the_page_is_self_contained_and_escaped(full):
    assert "script" not in full.tags and "link" not in full.tags and "iframe" not in full.tags
    assert full.text.count(EVIL) >= 30  # shown as text wherever it came from
    assert not any(name.startswith("on") or name == "href" for name, _ in full.attributes)
    assert all(value.startswith("data:image/svg+xml;base64,") for name, value in full.attributes if name == "src")


def test_pictures_hold_ascii_and_no_foreign_references(full):
    for picture in full.pictures:
        source = ElementTree.tostring(picture, encoding="unicode")
        assert picture_text(picture).replace("\N{MINUS SIGN}", "-").isascii()
        references = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', source)
        assert all("".join(each).startswith("#") for each in references)


def test_the_same_run_gives_the_same_page(tmp_path, write_run):
    write_run(tmp_path)
    assert build_report(tmp_path).read_bytes() == build_report(tmp_path).read_bytes()


@pytest.mark.parametrize(
    ("run", "pictures"),
    [
        ({"sets": ()}, 4),
        ({"losses": ()}, 1),
        ({"losses": (3.0,)}, 5),
        ({"losses": (math.nan, math.inf), "sets": ()}, 3),
        ({"sets": [f"set_{number}" for number in range(20)]}, 5),
    ],
    ids=["no validation", "validation only", "one step", "no finite loss", "many sets"],
)
def test_runs_with_missing_parts(tmp_path, write_run, run, pictures):
    assert len(page_of(write_run(tmp_path, **run)).pictures) == pictures


@pytest.mark.parametrize(
    "event",
    [
        {"event": "data", "time": 1, "mixture": 3, "references": {"a": 1}, "sources": [3], "validation": "x"},
        {"event": "data", "time": 1, "mixture": [{}], "references": [[]], "unigram_entropy": [1]},
        {"event": "session", "time": "yesterday", "step": [1], "session": None},
        {"event": ["session"], "time": 1e300, "step": {"a": 1}},
        {"event": "resume", "time": None, "step": [1]},
        {"event": "sources", "time": 1, "sources": [{"name": ["x"], "tokens": "y", "epochs": "z"}]},
    ],
)
def test_a_damaged_event_leaves_a_page(tmp_path, write_run, event):
    with open(write_run(tmp_path) / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "event"} | event) + "\n")
    assert len(page_of(tmp_path).pictures) == 5


def test_a_torn_line_is_noted(tmp_path, write_run):
    with open(write_run(tmp_path) / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert "line 6 skipped" in page_of(tmp_path).text


def test_another_place(tmp_path, write_run):
    out = tmp_path / "a" / "b.html"
    assert build_report(write_run(tmp_path), out=out) == out and out.stat().st_mode & 0o044
    assert not (tmp_path / "report.html").exists()


def test_a_failed_report_leaves_the_old_one_and_nothing_else(tmp_path, write_run):
    out = tmp_path / "out"
    (out / "report.html").mkdir(parents=True)
    with pytest.raises(RunError, match="--out"):
        build_report(write_run(tmp_path / "run"), out=out / "report.html")
    assert [each.name for each in out.iterdir()] == ["report.html"]


def test_an_empty_run_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="holds no training"):
        build_report(tmp_path)


def test_import_draws_in_no_heavy_library():
    code = (
        "import sys, megatron_sky.report; assert not {'matplotlib', 'torch', 'tensorboard', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

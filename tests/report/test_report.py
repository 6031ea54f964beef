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


def picture_text(picture):
    return " ".join(part.strip() for part in picture.itertext() if part.strip())


@pytest.fixture(scope="module")
def full(tmp_path_factory, write_run):
    run_dir = write_run(
        tmp_path_factory.mktemp("runs") / "my run",
        losses=[9 / step for step in range(1, 121)],
        sets=("code", "_中文网页", EVIL),
        events=[
            ("start", {"step": 0, "layout": "TP2 x PP1"}),
            ("data", {"sources": [{"name": EVIL, "tokens": 1}], "unigram_entropy": 5.71}),
        ],
    )
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
    titles = ["Training loss", "Validation loss by domain", "Learning rate", "Gradient norm", "Throughput"]
    assert all(title in full.text for title in titles) and len(full.pictures) == 5
    assert "unigram entropy 5.71" in picture_text(full.pictures[0])
    assert "unigram entropy" not in picture_text(full.pictures[1])


def test_the_page_is_self_contained_and_escaped(full):
    assert "script" not in full.tags and "link" not in full.tags and "iframe" not in full.tags
    assert full.text.count(EVIL) >= 6  # shown as text wherever it came from
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


def test_a_torn_line_is_noted(tmp_path, write_run):
    with open(write_run(tmp_path) / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert "line 6 skipped" in page_of(tmp_path).text


def test_many_events_are_folded(tmp_path, write_run):
    events = [("checkpoint", {"step": step}) for step in range(30)]
    page = page_of(write_run(tmp_path, events=events))
    assert "details" in page.tags and "30 events" in page.text


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

"""The report as Markdown: tables, pictures beside it, nothing of a run's names takes effect as markup."""

import os
import re
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

import pytest

from megatron_sky.report import build_report
from megatron_sky.report.content import (
    Code,
    Document,
    LegendEntry,
    Notes,
    Picture,
    Pictures,
    Sample,
    Samples,
    Section,
    Table,
)
from megatron_sky.report.markdown import render_markdown

EVIL = "a|b\n[x](http://e) <script> `*_ # $1$ @me ![y]"
SHOWN = r"a\|b \[x](http://e) &lt;script&gt; \`\*\_ \# \$1\$ \@me !\[y]"


def render(*blocks, heading="Heading"):
    return render_markdown(Document("title", "kind", "subtitle", [Section(heading, blocks)]), "pictures")


def test_names_with_underscores_stay_readable():
    text = render(Notes(["en_web L_test", "_all_", "网_页"]))
    assert "- en_web L_test\n" in text and r"\_all\_" in text and "网_页" in text


def test_a_table():
    text = render(Table(["name", "n"], [["code", "1"], ["web", "2"]], "nr", "Caption"))
    assert "## Heading\n\n### Caption\n\n| name | n |\n| :-- | --: |\n| code | 1 |\n| web | 2 |\n" in text


def test_sections_without_blocks_are_left_out():
    assert render() == "# title\n\nsubtitle\n"


@pytest.mark.parametrize(
    "block",
    [
        Table([EVIL], [[EVIL]], "n", EVIL),
        Notes([EVIL]),
        Samples([Sample(EVIL, EVIL, EVIL)]),
        Pictures([Picture("p", EVIL, EVIL, b"", [LegendEntry(EVIL, "#2563a8", "dashed")])], "lead"),
    ],
)
def test_what_comes_from_a_run_is_escaped(block):
    text = render(block, heading=EVIL)
    assert SHOWN in text and "<script" not in text
    assert len(re.findall(r"(?<!\\)[\[<]", text)) == (1 if isinstance(block, Pictures) else 0)  # the image itself


def test_a_picture_has_its_legend_in_words():
    legend = [LegendEntry("stage-1a", "#2563a8"), LegendEntry("other", "#d9730d", "dotted")]
    text = render(Pictures([Picture("loss", "Loss", "The loss", b"", legend)], "pairs"))
    assert "### Loss\n\n![The loss](pictures/loss.svg)\n\nLines: stage-1a (blue); other (orange, dotted)." in text


def test_a_fence_is_longer_than_any_in_the_text():
    assert "\n````\na: ```\n````\n" in render(Code("config", "a: ```\n"))


def test_a_sample_is_quoted_line_by_line():
    text = render(Samples([Sample("en", "The", "The cat\n\n# sat")]))
    assert 'en, after "The":\n\n> cat  \n>\n> \\# sat  \n' in text


def test_pictures_lie_beside_it(tmp_path, write_run):
    run_dir = write_run(tmp_path / "run", sets=("code", EVIL))
    path = build_report(run_dir, page_format="md")
    assert path == run_dir / "report.md"
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"!\[.*?\]\((report_pictures/\w+\.svg)\)", text)
    assert len(links) == 5
    for link in links:
        assert ElementTree.fromstring((run_dir / link).read_bytes()).tag.endswith("svg")
    assert SHOWN in text and "| code | 9.0000 | 6.0000 | -3.0000 |" in text


def test_another_place_with_an_odd_name(tmp_path, write_run):
    out = tmp_path / "my (new) report.md"
    build_report(write_run(tmp_path / "run"), out=out, page_format="md")
    assert "](my%20%28new%29%20report_pictures/lr.svg)" in out.read_text(encoding="utf-8")
    assert (tmp_path / "my (new) report_pictures" / "lr.svg").exists()


def test_several_runs(tmp_path, write_run):
    folders = [write_run(tmp_path / each) for each in ("a", "b")]
    path = build_report(*folders, page_format="md")
    assert path == folders[0] / "comparison.md"
    assert path.read_text(encoding="utf-8").startswith("# a \\| b\n\nComparison of 2 runs, ")


def test_pictures_are_found_whatever_bytes_the_page_is_named_by(tmp_path, write_run):
    out = tmp_path / os.fsdecode(b"caf\xe9.md")
    text = build_report(write_run(tmp_path / "run"), out=out, page_format="md").read_text(encoding="utf-8")
    (link, *_) = re.findall(r"\(([^)]*\.svg)\)", text)
    assert link.startswith("caf%E9_pictures/")
    assert (tmp_path / os.fsdecode(unquote_to_bytes(link))).is_file()

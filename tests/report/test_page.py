"""HTML of a document: every kind of block has its place, and nothing of a run can touch the page."""

from pathlib import Path
from typing import get_args

from megatron_sky.report import content, page


def test_every_kind_of_block_has_its_place_in_the_template():
    text = (Path(page.__file__).parent / "templates/page.html").read_text(encoding="utf-8")
    assert all(f'kind == "{block.__name__}"' in text for block in get_args(content.Block))


EVIL = '<script>alert(1)</script> & "quoted"'


def test_whatever_a_run_says_is_text():
    blocks = [
        content.KeyFigures([content.KeyFigure(EVIL, EVIL, EVIL)]),
        content.Table([EVIL], [[EVIL], [content.Change(-0.5)]], "n", EVIL),
        content.Folded(EVIL, content.Table([EVIL], [[EVIL]], "t")),
        content.Code(EVIL, EVIL),
        content.Samples([content.Sample(EVIL, EVIL, EVIL + " goes on")]),
        content.Notes([EVIL]),
        content.Pictures(
            [content.Picture("p", EVIL, EVIL, b"<svg/>", [content.LegendEntry(EVIL, "#123456", "dashed")])], "pairs"
        ),
    ]
    text = page.render_html(content.Document(EVIL, EVIL, EVIL, [content.Section(EVIL, blocks)]))
    assert "<script" not in text and text.count("&lt;script&gt;") > 15
    assert "data:image/svg+xml;base64,PHN2Zy8+" in text and 'class="better"' in text and "-0.5000" in text


def test_a_section_without_blocks_is_left_out():
    sections = [content.Section("empty", []), content.Section("full", [content.Notes(["a note"])])]
    text = page.render_html(content.Document("t", "k", "s", sections))
    assert "full" in text and "empty" not in text

from pathlib import Path

import pytest

from megatron_sky.corpus.extract import Extract, Sandbox, build_extractor, clean
from megatron_sky.corpus.ledger import read_stage
from megatron_sky.corpus.recipe import ExtractConfig

PAGE = """<html><head><title>t</title><script>var x;</script></head><body>
<nav><a href="/">Home</a></nav><main><article>
<h1>桥的历史</h1><p>工匠用<a href="/stone">石头</a>把它建在河上，后来河水改了方向，人们便把它当作集市。</p>
<pre>x = 1</pre><ul><li>第一点是石头的来源</li><li class="x">second
</li></ul></article></main>
<footer>all rights reserved</footer></body></html>"""


def test_main_text_is_taken_and_a_link_stays_in_its_line(tmp_path, document):
    pages = [document(PAGE, is_html=True), document("<p>plain"), document("<html></html>", is_html=True)]
    kept = list(Extract(tmp_path, ExtractConfig(), True).run(pages))
    assert len(kept) == 2 and kept[1].text == "<p>plain"
    assert all(part in kept[0].text for part in ("工匠用石头把它建在河上", "x = 1", "第一点", "second"))
    assert not any(word in kept[0].text for word in ("Home", "var x", "all rights"))
    assert read_stage(tmp_path, "extract")["web"].dropped["no_main_text"].documents == 1


def test_marked_pages_are_met(monkeypatch):
    """The measure of benchmarks/corpus_extraction.py; its pages were marked before an extractor saw them."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from corpus_extraction import mean_f1, score, score_pages

    assert score("b c d e", "a b c d").f1 == 0.75 and score("b c d e", "a b c d").f1_of_grams == 0
    scores = score_pages("resiliparse")
    assert len(scores) == 12
    for language in ("en", "zh"):
        assert mean_f1(scores, language) >= 0.95 and mean_f1(scores, language, "f1_of_grams") >= 0.93, scores


def test_lines_of_a_pages_frame_go_and_sentences_with_their_words_stay():
    kept = "上一篇文章说过这件事，责任编辑也看过。"
    frame = "<p>（责任编辑：王明）</p><div>您现在的位置：首页 &gt; 新闻</div><p>© 2023 site</p>"
    page = f"<main><article><h1>题目</h1><p>{kept * 3}</p><p>{kept * 4}</p>{frame}</article></main>"
    text = build_extractor(ExtractConfig()).extract(page)
    assert text.count(kept) == 7 and not any(word in text for word in ("王明", "您现在", "2023"))


class Endless:
    """An extractor that never comes back from some pages, and dies of others."""

    timeout = 0.5

    def extract(self, text):
        import os
        import time

        if text == "endless":
            time.sleep(60)
        if text == "deadly":
            os._exit(1)
        return text


def test_a_page_that_takes_for_ever_or_kills_the_parser_is_one_document(tmp_path, document):
    step = Extract(tmp_path, ExtractConfig(), True)
    step.extractor = Endless()
    kept = list(step.run([document(text, is_html=True) for text in ("one", "endless", "two", "deadly", "three")]))
    assert [one.text for one in kept] == ["one", "two", "three"]
    dropped = read_stage(tmp_path, "extract")["web"].dropped
    assert {rule: amount.documents for rule, amount in dropped.items()} == {"timeout": 1, "parser_died": 1}


def test_the_sandbox_ends_with_its_task():
    with Sandbox(timeout=20) as sandbox:
        assert sandbox.process_document("one", Endless().extract) == "one"
        sandbox.parent_conn.close()  # as the end of this process would
        sandbox.process.join(20)
        assert sandbox.process.exitcode == 0


def test_trafilatura_remembers_no_earlier_page():
    pytest.importorskip("trafilatura")
    extractor = build_extractor(ExtractConfig(engine="trafilatura"))
    assert extractor.extract(PAGE) == extractor.extract(PAGE) == extractor.extract(PAGE) != ""


def test_clean():
    assert clean("a \r\n\n\nb\u00a0c \n") == "a\nb c"

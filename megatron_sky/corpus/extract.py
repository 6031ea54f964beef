"""The main text of HTML pages: without menus, footers and advertisements; lists, tables and code blocks by lines.

resiliparse is the default: some 20 times faster than trafilatura, and a link within a Chinese sentence stays in its
line. Pages go through datatrove's sandbox, a process beside the task's, so that a page that takes for ever or brings
the parser down is one document dropped. trafilatura's own deduplication is off: it remembers earlier pages, and the
text of a page would depend on which came before it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import BaseExtractor, ExtractorSandbox

from megatron_sky.corpus.recipe import ExtractConfig
from megatron_sky.corpus.stage import Stage

_PLAIN_LIST = re.compile(r"<ul\b[^<>]*>((?:(?!<ul\b|<a\b|</ul).)*)</ul\s*>", re.IGNORECASE | re.DOTALL)
_ITEM = re.compile(r"(</?)li\b", re.IGNORECASE)
_SKIPPED = [
    *("[class*=breadcrumb]", "[class*=pinglun]", "[id*=pinglun]", ".sharedaddy"),
    # MediaWiki
    *(".mw-editsection", "sup.reference", ".references", ".reflist", ".navbox", ".infobox", ".catlinks", ".hatnote"),
    *("#siteSub", "#jump-to-nav", "#toc", ".toc"),
    # phpBB
    *(".postprofile", ".postbody .author", ".postbody .signature", ".post-buttons", ".action-bar"),
    # Discuz!
    *("#toptb", "#pt", "#nv", "#ft", "td.pls", "td.plc .pi", "td.plc .sign", "td.plc .po", "td.plc .pct .pstatus"),
    # Baidu Baike
    *(".basic-info", ".lemma-catalog", ".edit-lemma", ".edit-icon", ".lemma-reference", ".side-content", ".open-tag"),
    *(".top-tool", ".album-list"),
]
"""Elements that are no text of the page's own, by the names that widespread page software gives them."""
_NOTICE = re.compile(
    r"^[ \t\u3000]*(?:[（(【\[]?责任编辑|您?(?:当前|现在|所在)的?位置[：:]|设为首页|加入收藏|分享到[：:]|"
    r"[上下]一篇[：:]|友情链接[：:]|"
    r"(?:Copyright|版权所有) ?[©(：:]|©|Powered by |All rights reserved).{0,120}$\n?",
    re.MULTILINE,
)
"""Short lines of a page's frame."""
_BLANK = re.compile(r"[ \t]+(?=\n)|(?<=\n)\n+")


class Resiliparse(BaseExtractor):
    """datatrove's extractor over resiliparse.

    It takes every list with bullets for a menu: one without links becomes paragraphs before.
    """

    name = "⛏ Resiliparse"
    _requires_dependencies = ("resiliparse",)

    def __init__(self, timeout: float = 1):
        super().__init__(timeout)

    def extract(self, text: str) -> str:
        from resiliparse.extract.html2text import extract_plain_text

        text = _PLAIN_LIST.sub(_as_paragraphs, text)
        found = extract_plain_text(
            text, main_content=True, alt_texts=False, noscript=False, comments=False, skip_elements=_SKIPPED
        )
        return _NOTICE.sub("", found)


def _as_paragraphs(match: re.Match[str]) -> str:
    items = _ITEM.sub(r"\1p", match.group(1))
    return f"<div>{items}</div>"


class Sandbox(ExtractorSandbox):
    """A process that ends with the one that asks it, however that ends."""

    def _worker(self, conn: Connection, extract_fn: Callable[[str], str]) -> None:
        self.parent_conn.close()  # this process's copy of the other end: while it is open, no end is seen
        super()._worker(conn, extract_fn)


def build_extractor(config: ExtractConfig) -> BaseExtractor:
    """The recipe's extractor."""
    if config.engine == "trafilatura":
        return Trafilatura(timeout=config.timeout_seconds, deduplicate=False)
    return Resiliparse(timeout=config.timeout_seconds)


class Extract(Stage):
    """HTML to main text; what is no HTML goes through."""

    def __init__(self, folder: Path, config: ExtractConfig, keep: bool):
        super().__init__("extract", folder, keep_dropped=keep)
        self.extractor = build_extractor(config)
        self._sandbox: Sandbox | None = None

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with Sandbox(timeout=self.extractor.timeout, warmup_text="") as self._sandbox:
            yield from super().run(data, rank, world_size)
        self._sandbox = None

    def judge(self, document: Document) -> str | None:
        if not document.metadata.pop("is_html", False):
            return None
        assert self._sandbox is not None
        try:
            text = self._sandbox.process_document(document.text, self.extractor.extract)
        except TimeoutError:
            return "timeout"
        except EOFError:  # the sandbox's process is gone
            return "parser_died"
        text = clean(text or "")
        if not text:
            return "no_main_text"
        document.text = text
        return None


def clean(text: str) -> str:
    """One line break between paragraphs, no white space at the ends of lines."""
    return _BLANK.sub("", text.replace("\r\n", "\n").replace("\u00a0", " ")).strip()

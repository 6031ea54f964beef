"""Writes a small crawl: WARC files of Chinese and English pages in several encodings, with what a crawl has of bad.

    python examples/corpus_in_miniature/make_crawl.py FOLDER

Copies, near copies, boilerplate, spam, mislabelled and broken pages, personal data, questions of a benchmark: each kind
that a stage of the pipeline is for, so that its account shows every rule. The same files come out each time.
"""

import gzip
import io
import json
import random
import sys
from pathlib import Path

NUM_PAGES = 120  # of each language


def listed(text: str) -> list[str]:
    """The phrases of a text, which end with a stroke."""
    return [" ".join(phrase.split()) for phrase in text.split("/")]


CHINESE = {
    "who": listed("研究人员/市民/工程师/老师/学生/记者/医生/农民/画家/游客/程序员/厨师/司机/律师/图书管理员/天文学家"),
    "place": listed("北京/上海/成都/西安/杭州/昆明/拉萨/哈尔滨/广州/青岛/苏州/敦煌/厦门/武汉/重庆/长沙"),
    "deed": listed("发现了/记录了/讨论了/改进了/整理了/观察了/介绍了/修复了/比较了/测量了/收集了/描写了"),
    "what": listed(
        """古老的桥梁/城市的河流/山里的茶园/博物馆的藏品/夜空中的星座/地铁的新线路/传统的木工手艺/湿地里的候鸟/社区的小花园/
        一种稀有的兰花/古籍中的地图/海边的灯塔/草原上的风/学校的实验室/老街的面馆/大坝的水位"""
    ),
    "why": listed(
        """因为这关系到大家的生活/为了让后来的人也能看到/这在过去的十年里还是第一次/而且花费比预计的要少/这与人们通常的看法不同/
        虽然天气一直不好/尽管没有多少人注意到/并且把结果写进了报告"""
    ),
}
ENGLISH = {
    "who": listed(
        """researchers/the mayor/an engineer/two teachers/a student/the reporter/a doctor/local farmers/a painter/
        several visitors/the programmer/a cook/the driver/a lawyer/the librarian/an astronomer"""
    ),
    "place": listed("Boston/London/Chicago/Dublin/Sydney/Toronto/Denver/Leeds/Austin/Perth/Glasgow/Seattle"),
    "deed": listed("discovered/recorded/discussed/improved/sorted/observed/presented/repaired/compared/measured"),
    "what": listed(
        """an old bridge/the river of the city/tea gardens in the hills/the museum's collection/stars of the night sky/
        the new underground line/a traditional craft/birds of the wetland/a small garden/a rare orchid/maps in old
        books/the lighthouse by the sea/wind over the plain/the school's laboratory"""
    ),
    "why": listed(
        """because it matters for everyday life/so that others can see it too/the first time in ten years/and it cost
        less than planned/although the weather was bad/while few people noticed/and wrote a report about it"""
    ),
}
MENU = {"zh": ["首页", "新闻", "视频", "联系我们", "关于本站"], "en": ["Home", "News", "Videos", "Contact", "About us"]}
NOTICE = {
    "zh": "本站所有文章均由编辑部整理发布，转载请注明来自本站的完整链接，并保留作者的姓名。",
    "en": "All articles of this site were prepared by the editors; please name the address when you quote from them.",
}
QUESTION = "a train leaves the first station at nine with forty two people and at each of six stops seven more get in"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(13)
    records = pages(draw)
    draw.shuffle(records)
    for number in range(4):
        (folder / f"crawl_{number}.warc.gz").write_bytes(b"".join(map(gzipped, records[number::4])))
    (folder / "cut_off.warc.gz").write_bytes(b"".join(map(gzipped, records[:3]))[:-200])
    entries = [{"text": article(draw, "zh"), "url": f"https://wiki.test/{i}"} for i in range(40)]
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries] + ['{"text": 3}', "{broken"]
    (folder / "wiki.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "benchmark.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n", encoding="utf-8")


def sentence(draw: random.Random, language: str) -> str:
    words = {kind: draw.choice(choices) for kind, choices in (CHINESE if language == "zh" else ENGLISH).items()}
    number = draw.randint(2, 97)
    if language == "zh":
        return f"{words['place']}的{words['who']}在{number}天里{words['deed']}{words['what']}，{words['why']}。"
    time = draw.choice(["in {} days", "on page {} of the book", "within {} hours", "at number {}", "after {} weeks"])
    parts = [words["who"], words["deed"], words["what"], time.format(number)]
    orders = ([f"In {words['place']}", *parts], [*parts[:3], f"near {words['place']}", parts[3]])
    text = f"{' '.join(draw.choice(orders))}, {words['why']}."
    return text[0].upper() + text[1:]


def article(draw: random.Random, language: str, paragraphs: int = 4) -> str:
    joint = "" if language == "zh" else " "
    return "\n".join(joint.join(sentence(draw, language) for _ in range(draw.randint(3, 6))) for _ in range(paragraphs))


def html(text: str, language: str, charset: str, title: str) -> str:
    menu = "".join(f'<li><a href="/{i}">{word}</a></li>' for i, word in enumerate(MENU[language]))
    body = "".join(f"<p>{paragraph}</p>" for paragraph in [NOTICE[language], *text.split("\n")])
    return (
        f'<!doctype html><html><head><meta charset="{charset}"><title>{title}</title><script>var a = 1;</script></head>'
        f"<body><nav><ul>{menu}</ul></nav><main><article><h1>{title}</h1>{body}</article></main></body></html>"
    )


def pages(draw: random.Random) -> list[bytes]:
    records = [record(b"GET / HTTP/1.1\r\n\r\n", "request", "https://site.test/", "application/http; msgtype=request")]
    for language, charsets in (("zh", ["utf-8", "gbk", "gb18030", "big5"]), ("en", ["utf-8", "iso-8859-1"])):
        for number in range(NUM_PAGES):
            text = article(draw, language)
            charset = charsets[number % len(charsets)]
            records.append(page(text, language, charset, charset, number))
            if number % 10 == 0:  # a copy at another address, a near copy, and one that says another encoding
                records.append(page(text, language, charset, charset, number + 1000))
                near = text + "\n" + sentence(draw, language)
                records.append(page(near, language, charset, charset, number + 2000))
                records.append(page(article(draw, language), language, "utf-8", "gbk", number + 3000))
    return records + bad_pages(draw)


def bad_pages(draw: random.Random) -> list[bytes]:
    private = article(draw, "en") + "\nWrite to jane.doe@site.test or call (212) 555-0142 for the report of the year."
    spam = "立即购买 全国包邮 加微信 点击进入 优惠券 " * 40
    texts = [
        ("en", private),
        (
            "zh",
            article(draw, "zh") + "\n请致电13812345678或写信给zhang@site.test，身份证号11010519491231002X也请带上。",
        ),
        ("zh", spam),
        ("en", "Buy now! Click here. " * 60),
        ("en", f"{article(draw, 'en')}\nThe task was: {QUESTION}, and how many people are there at the end?"),
        ("en", "Das Wetter ist heute schön, und wir gehen mit den Kindern durch den Wald bis zum See hinunter. " * 6),
        ("zh", "锟斤拷烫烫烫" * 60),
        ("zh", "太短。"),
        ("en", "\n".join(["The same line comes again and again on this page."] * 40)),
    ]
    return [page(text, language, "utf-8", "utf-8", 5000 + i) for i, (language, text) in enumerate(texts)]


def page(text: str, language: str, charset: str, declared: str, number: int) -> bytes:
    content = html(text, language, declared, f"{number}").encode(charset, "xmlcharrefreplace")
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset={declared}\r\n\r\n".encode() + content
    return record(http, "response", f"https://{language}.site.test/{number}", "application/http; msgtype=response")


def record(content: bytes, kind: str, url: str, content_type: str) -> bytes:
    head = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {url}",
        f"WARC-Date: 2023-10-{1 + len(content) % 28:02d}T00:00:00Z",
        f"WARC-Record-ID: <urn:uuid:{len(content):032d}>",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + content + b"\r\n\r\n"


def gzipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write(content)
    return packed.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

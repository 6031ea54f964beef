import pytest

from megatron_sky.corpus.decode import decode

CHINESE = "这是一个测试页面，我们在这里说明编码的问题，他们也会来看的。"
TRADITIONAL = "這是一個測試頁面，我們在這裡說明編碼的問題，他們也會來看的。"


def page(text, encoding, declared):
    return f'<html><head><meta charset="{declared}"></head><body>{text}</body></html>'.encode(encoding)


@pytest.mark.parametrize(
    ("text", "encoding", "declared"),
    [
        (CHINESE, "gbk", "gb2312"),
        (CHINESE, "gb18030", "gbk"),
        (TRADITIONAL, "big5", "big5"),
        (CHINESE, "utf-8", "utf-8"),
        ("Café naïve résumé", "iso-8859-1", "iso-8859-1"),
    ],
)
def test_declared_encodings_are_read(text, encoding, declared):
    decoded = decode(page(text, encoding, declared))
    assert text in decoded.text and not decoded.is_mislabelled


@pytest.mark.parametrize("declared", ["gbk", "iso-8859-1", "big5"])
def test_utf8_under_another_name_is_utf8(declared):
    decoded = decode(page(CHINESE, "utf-8", declared))
    assert CHINESE in decoded.text and decoded.is_mislabelled


@pytest.mark.parametrize(("text", "encoding"), [(CHINESE, "gbk"), (TRADITIONAL, "big5")])
def test_what_is_not_declared_is_detected(text, encoding):
    assert text in decode(f"<p>{text}</p>".encode(encoding)).text
    assert text in decode(page(text, encoding, "utf-8"), "text/html; charset=utf-8").text


def test_a_page_that_is_cut_within_a_character_is_read_and_bytes_of_no_encoding_are_not():
    assert CHINESE * 5 in decode((CHINESE * 5 + "完").encode()[:-1]).text
    assert decode(bytes(range(0x80, 0x100)) * 20) is None


def test_unknown_names_and_marks():
    assert decode(b"\xef\xbb\xbfabc", "text/html; charset=nonsense").text == "abc"
    assert decode("中文".encode("utf-16")).text == "中文"

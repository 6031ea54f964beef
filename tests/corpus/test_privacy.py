import pytest

from megatron_sky.corpus.privacy import mask
from megatron_sky.corpus.recipe import PrivacyConfig


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+x@mail.example.org now", "write to <email> now"),
        ("邮箱zhang@example.cn，谢谢", "邮箱zhang@example.cn，谢谢".replace("zhang@example.cn", "<email>")),
        ("电话13812345678。", "电话<phone>。"),
        ("电话 +86 138 1234 5678", "电话 <phone>"),
        ("座机010-62345678", "座机<phone>"),
        ("call (212) 555-0142 or 415-555-2671", "call <phone> or <phone>"),
        ("身份证11010519491231002X", "身份证<id>"),
        ("SSN 123-45-6789", "SSN <id>"),
        ("from 8.8.8.8, not 192.168.0.1", "from <ip>, not 192.168.0.1"),
    ],
)
def test_personal_data_is_masked(text, masked):
    assert mask(text, PrivacyConfig())[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "110105194912310021 has a wrong last digit",
        "version 1.2.3.4.5 and 999.1.1.1",
        "in 2023-10-11 12:00 we paid 1,234,567.89",
        "000-12-3456 is no number of anybody",
        "订单号138123456789012",
    ],
)
def test_other_numbers_stay(text):
    assert mask(text, PrivacyConfig())[0] == text


def test_kinds_can_be_left_out_and_are_counted():
    text = "a@example.org b@example.org 8.8.8.8"
    assert mask(text, PrivacyConfig(emails=False)) == ("a@example.org b@example.org <ip>", {"ip": 1})
    assert mask(text, PrivacyConfig())[1] == {"email": 2, "ip": 1}

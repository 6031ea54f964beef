import random
import sys

from megatron_sky.corpus.characters import COMMON_SIGNS, Kinds, count_kinds

MIXED = "今天 12, Word²！カナ\u3000\U00020001"


def test_kinds_are_those_of_pythons_own_tests():
    draw = random.Random(1)
    text = (
        "".join(chr(draw.randrange(sys.maxunicode + 1)) for _ in range(20_000)) + "今天 12, Word²！カナ\u3000\U00020001"
    )
    for given in (text, "".join(char for char in text if ord(char) < 0x10000), "plain, 1\n", ""):
        counts = count_kinds(given)
        assert counts.digits == sum(map(str.isdigit, given)) and counts.letters == sum(map(str.isalpha, given))
        assert counts.alphanumeric == sum(map(str.isalnum, given)) and counts.spaces == sum(map(str.isspace, given))
        assert counts.common_signs == sum(map(COMMON_SIGNS.__contains__, given))
    wanted = Kinds(digits=3, alphanumeric=12, letters=9, common_signs=2, han=3, latin=4, kana=2, spaces=3)
    assert count_kinds(MIXED) == wanted

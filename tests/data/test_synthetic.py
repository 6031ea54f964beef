import hashlib
import re

from megatron_sky.data.synthetic import DOMAINS, SPLITS, write_corpus
from tests.data.helpers import read_texts


def digest(files):
    return hashlib.sha256(b"".join(files[s][d].read_bytes() for s in SPLITS for d in DOMAINS)).hexdigest()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    sizes = {"train_bytes": 50_000, "heldout_bytes": 4_000}
    first, second = (digest(write_corpus(tmp_path / name, seed=5, **sizes)) for name in "ab")
    assert first == second != digest(write_corpus(tmp_path / "c", seed=6, **sizes))


def test_no_document_occurs_twice(text_corpus):
    texts = [text for split in text_corpus.files.values() for file in split.values() for text in read_texts(file)]
    assert len(texts) == len(set(texts)) > 200


def test_sizes_follow_the_knob(text_corpus):
    train = sum(len(text.encode()) for file in text_corpus.files["train"].values() for text in read_texts(file))
    assert 200_000 <= train < 210_000


def test_held_out_text_does_not_depend_on_the_training_size(tmp_path, text_corpus):
    other = write_corpus(tmp_path, seed=7, train_bytes=20_000, heldout_bytes=8_000)
    for split in ("validation", "test"):
        for domain in DOMAINS:
            assert other[split][domain].read_bytes() == text_corpus.files[split][domain].read_bytes()


def test_the_arithmetic_of_the_exercises_is_right(text_corpus):
    texts = read_texts(text_corpus.files["train"]["stem"])
    sums = re.findall(r"(\d+) ([*+/]) (\d+) = (\d+)", "\n".join(texts))
    assert len(sums) > 100
    for left, sign, right, result in sums:
        exact = {"*": int(left) * int(right), "+": int(left) + int(right), "/": int(left) / int(right)}
        assert exact[sign] == int(result)


def test_each_domain_has_its_own_words(text_corpus):
    chinese = {
        d: sum("\u4e00" <= c <= "\u9fff" for t in read_texts(f) for c in t)
        for d, f in text_corpus.files["train"].items()
    }
    assert chinese["zh_web"] > 5000 and chinese["stem"] > 1000
    assert chinese["en_web"] == chinese["code"] == chinese["papers"] == 0

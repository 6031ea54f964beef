import numpy as np

from megatron_sky.corpus.ledger import read_stage
from megatron_sky.corpus.recipe import RecurrenceConfig
from megatron_sky.corpus.recurrence import CountParagraphs, CutParagraphs, WriteParagraphs

CONFIG = RecurrenceConfig(max_documents=2, partitions=3, min_length=10, max_cut_share=0.7)
NOTICE = "All rights of this site are with its owners."


def texts(rank):
    return [f"{NOTICE}\nThis is the own text of document {rank} {i}, and {NOTICE.lower()}\n{NOTICE}" for i in range(2)]


def test_what_is_in_too_many_documents_is_cut(tmp_path, document):
    for rank in range(2):
        list(WriteParagraphs(tmp_path / "hashes", CONFIG).run(map(document, texts(rank)), rank))
    for partition in range(3):
        CountParagraphs(tmp_path / "hashes", tmp_path / "counts", CONFIG).run(None, partition)
    cut = CutParagraphs(tmp_path, tmp_path / "counts", CONFIG, keep=False)
    kept = list(cut.run(map(document, [*texts(0), NOTICE + " More.", NOTICE]), 0))
    assert [one.text for one in kept] == [texts(0)[0].split("\n")[1], texts(0)[1].split("\n")[1], NOTICE + " More."]
    account = read_stage(tmp_path, "recurrence")["web"]
    assert account.dropped["recurrent"].documents == 1 and account.notes["cut_paragraphs"] == 5
    assert account.cut_bytes == 4 * (len(NOTICE) + 1)


def test_counting_in_pieces_gives_the_same(tmp_path):
    draw = np.random.default_rng(0)
    keys = draw.integers(0, 1 << 63, size=200, dtype=np.uint64)
    (tmp_path / "hashes" / "00000").mkdir(parents=True)
    for rank in range(3):
        np.concatenate([keys[: 50 * (rank + 1)], keys[:9]]).tofile(tmp_path / "hashes" / "00000" / f"{rank:05d}.u64")
    for name, at_once in (("whole", 10**6), ("pieces", 40)):
        CountParagraphs(tmp_path / "hashes", tmp_path / name, CONFIG, at_once).run(None, 0)
    whole, pieces = (np.load(tmp_path / name / "00000.npy") for name in ("whole", "pieces"))
    assert np.array_equal(whole, pieces) and np.array_equal(whole, np.sort(keys[:50]))

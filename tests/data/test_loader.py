import json
import os
import threading
import time

import numpy as np
import pytest
import torch

from megatron_sky.config.schema import DataConfig
from megatron_sky.data.loader import DocumentBounds, TrainData, ValidationData, prefetch
from megatron_sky.data.sampling.mixture import SessionMixture
from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path
from megatron_sky.data.tokens.meta import meta_path
from megatron_sky.data.tokens.sources import open_source
from megatron_sky.errors import ConfigError, DataError
from tests.data.helpers import write_pair

SEQ = 8


@pytest.fixture
def sources(tmp_path):
    """Two sources whose tokens tell where they stand: a counts 0, 1, 2 ..., b the same from 5000."""
    write_pair(tmp_path / "a", [list(range(0, 500)), list(range(500, 1000))])
    write_pair(tmp_path / "b", [list(range(5000, 5400))])
    return DataConfig(
        train=(
            {"name": "a", "path": str(tmp_path / "a"), "weight": 3.0},
            {"name": "b", "path": f"{tmp_path / 'b'}.bin", "weight": {"start": 0.5, "end": 1.5}},
        )
    )


def build(config, **more):
    sessions = [SessionMixture(0, more.pop("total_samples", 200))]
    sources = [open_source(each.path, vocab_size=6000) for each in config.train]
    return TrainData(config, sources, **({"seq_length": SEQ, "vocab_size": 6000, "sessions": sessions} | more))


def held_out(prefix, vocab_size: int, **more) -> ValidationData:
    source = open_source(prefix, vocab_size=vocab_size)
    return ValidationData(source, **({"seq_length": SEQ, "vocab_size": vocab_size} | more))


def test_batches_hold_consecutive_tokens_and_their_successors(sources):
    data = build(sources)
    batch = data.read(range(200))
    assert batch.tokens.shape == batch.labels.shape == (200, SEQ)
    assert batch.tokens.dtype == batch.labels.dtype == batch.position_ids.dtype == torch.int64
    assert batch.loss_mask.dtype == torch.float32 and batch.loss_mask.min() == 1
    assert torch.equal(batch.labels, batch.tokens + 1)
    assert torch.equal(batch.tokens - batch.tokens[:, :1], torch.arange(SEQ).repeat(200, 1))
    assert torch.equal(batch.position_ids, torch.arange(SEQ).repeat(200, 1))
    from_b = int((batch.tokens[:, 0] >= 5000).sum())
    assert data.plan.consumed(200) == [200 - from_b, from_b]


def test_batches_depend_on_sample_numbers_alone(sources):
    whole = build(sources).read(range(60)).tokens
    parts = [build(sources).read(range(start, start + 20)).tokens for start in (0, 20, 40)]
    assert torch.equal(torch.cat(parts), whole)


def test_ids_beyond_the_vocabulary_are_named_with_their_place(sources):
    data = build(sources, vocab_size=5200)
    with pytest.raises(DataError, match=r"b\.bin: token \d+ \(byte [\d,]+\) is 5[23]\d\d, but .*5200"):
        data.read(range(200))


def test_negative_ids_are_named(tmp_path):
    write_pair(tmp_path / "n", [[1, 2, 3, -4, 5, 6, 7, 8, 9, 10]], np.int32)
    data = build(DataConfig(train=({"name": "n", "path": str(tmp_path / "n")},)), total_samples=1)
    with pytest.raises(DataError, match=r"token 3 \(byte 12\) is -4"):
        data.read([0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": ()}, ConfigError, "names no source"),
        ({"max_epochs": 0.1}, ConfigError, "data.max_epochs = 0.1"),
    ],
)
def test_mixtures_that_can_not_be_used(sources, change, error, message):
    with pytest.raises(error, match=message):
        build(sources.model_copy(update=change))


def test_no_weight_at_all(tmp_path):
    path = write_pair(tmp_path / "a", [list(range(100))])
    config = DataConfig(train=({"name": "a", "path": str(path), "weight": 0.0},))
    with pytest.raises(ConfigError, match="all weights are 0"):
        build(config)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.bin does not exist"):
        build(DataConfig(train=({"name": "a", "path": str(tmp_path / "nowhere")},)))


def test_a_file_that_shrinks_stops_the_run(sources, tmp_path):
    data = build(sources)
    data.read([0])
    os.truncate(bin_path(tmp_path / "a"), 100)
    os.truncate(bin_path(tmp_path / "b"), 100)
    with pytest.raises(DataError, match=r"cut short|changed while in use"):
        data.read(range(1, 20))


def test_documents_are_kept_apart(tmp_path):
    documents = [[9, 8, 2], [7, 2], [6, 5, 4, 3, 9, 2], [2], [5, 5, 5, 5, 2], [1, 1, 2]]
    prefix = write_pair(tmp_path / "d", documents)
    config = DataConfig(
        train=({"name": "d", "path": str(prefix)},), document_mask=True, mask_document_ends=True, max_epochs=50
    )
    data = build(config, total_samples=60)
    batch = data.read(range(60))
    flat = np.concatenate(documents)
    number_of = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    for row, number in enumerate(range(60)):
        offset = data.plan.token_offset(data.plan.locate(number))
        inside = number_of[offset : offset + SEQ]
        assert batch.tokens[row].tolist() == flat[offset : offset + SEQ].tolist()
        assert batch.document_ids[row].tolist() == (inside - inside[0]).tolist()
        positions = [int((inside[:at] == each).sum()) for at, each in enumerate(inside)]
        assert batch.position_ids[row].tolist() == positions
        same = number_of[offset : offset + SEQ] == number_of[offset + 1 : offset + SEQ + 1]
        assert batch.loss_mask[row].tolist() == same.astype(float).tolist()
    begins = [at for at, position in enumerate(batch.position_ids.flatten().tolist()) if position == 0]
    assert batch.cu_seqlens.tolist() == [*begins, 60 * SEQ]


def test_a_held_out_set_keeps_documents_apart_as_training_does(tmp_path):
    documents = [[9, 8, 2], [7, 2], [6, 5, 4, 3, 9, 2], [2], [5, 5, 5, 5, 2], [1, 1, 2]]
    prefix = str(write_pair(tmp_path / "d", documents))
    number_of = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    for bounds in (DocumentBounds(), DocumentBounds(mask_attention=True), DocumentBounds(True, True)):
        data = held_out(prefix, 10, bounds=bounds)
        batch = data.read(range(data.num_sequences + 1))  # the last row is filled up, and masked out
        assert (batch.document_ids is not None) == (batch.cu_seqlens is not None) == bounds.mask_attention
        scored = 0
        for row in range(data.num_sequences):
            inside = number_of[row * SEQ : (row + 1) * SEQ + 1]
            count = len(inside) - 1
            if bounds.mask_attention:
                assert batch.document_ids[row, :count].tolist() == (inside[:-1] - inside[0]).tolist()
            within = inside[:-1] == inside[1:] if bounds.mask_ends else np.ones(count)
            assert batch.loss_mask[row].tolist() == [*within.astype(float), *[0.0] * (SEQ - count)]
            scored += count
        assert scored == len(number_of) - 1 and not batch.loss_mask[-1].any()


def test_documents_begin_where_the_index_says_with_and_without_a_meta_file(text_corpus, tmp_path):
    from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files

    lines = [json.dumps({"text": f"{number} ends with </s> here"}) for number in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = TokenizeOptions(parse_special=True)  # puts the end token into every document
    tokenize_files([tmp_path / "a.jsonl"], tmp_path / "a", text_corpus.tokenizer, options)
    config = DataConfig(train=({"name": "a", "path": str(tmp_path / "a")},), document_mask=True, max_epochs=50)
    with_meta = build(config, total_samples=40, seq_length=300).read(range(40))
    meta_path(tmp_path / "a").unlink()
    without = build(config, total_samples=40, seq_length=300).read(range(40))
    assert torch.equal(with_meta.document_ids, without.document_ids)
    assert torch.equal(with_meta.cu_seqlens, without.cu_seqlens)
    ends = (with_meta.tokens == text_corpus.tokenizer.eod_id).sum(1)
    assert with_meta.document_ids.max() > 5 and (with_meta.document_ids.amax(1) <= ends // 2 + 1).all()


def test_a_resumed_run_continues_its_plan(sources):
    first = build(sources)
    saved = first.plan.fingerprint()
    again = build(sources)
    assert again.continue_from(saved, 100) == ""
    changed = build(sources.model_copy(update={"train": sources.train[:1]}), total_samples=220)
    assert "has left after" in changed.continue_from(saved, 100)
    assert changed.plan.segments[-1].first_sample == 100 and changed.plan.consumed(100) == first.plan.consumed(100)[:1]
    other = build(sources.model_copy(update={"seed": 5}))
    with pytest.raises(ConfigError, match=r"data\.seed"):
        other.continue_from(saved, 100)


def test_prefetching_changes_nothing(sources):
    requests = [range(start, start + 4) for start in range(0, 80, 4)]
    expected = [build(sources).read(request).tokens for request in requests]
    for workers, depth in ((0, 1), (1, 1), (3, 2), (2, 50)):
        got = [batch.tokens for batch in prefetch(build(sources).read, requests, workers, depth)]
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_prefetch_reads_only_so_far_ahead():
    asked = []
    stream = prefetch(lambda request: asked.append(request), ([n] for n in range(1000)), 1, 3)
    next(stream)
    time.sleep(0.1)
    assert len(asked) <= 4
    stream.close()


def test_prefetch_raises_at_the_right_batch_and_ends():
    def read(request):
        if request == [2]:
            raise DataError("no")
        return request

    stream = prefetch(read, [[n] for n in range(9)], 2, 4)
    assert next(stream) == [0] and next(stream) == [1]
    with pytest.raises(DataError):
        next(stream)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data")]


def test_validation_leaves_no_token_out(tmp_path):
    prefix = write_pair(tmp_path / "v", [list(range(100, 121))])
    data = held_out(prefix, 200)
    assert data.num_sequences == 3
    batch = data.read([0, 1, 2, 3])
    labels = batch.labels[batch.loss_mask > 0]
    assert sorted(labels.tolist()) == list(range(101, 121))
    assert torch.equal(batch.tokens[batch.loss_mask > 0] + 1, labels)
    assert batch.loss_mask[3].sum() == 0
    limited = held_out(prefix, 200, max_sequences=2)
    assert limited.num_sequences == 2 and limited.read([2]).loss_mask.sum() == 0


def test_validation_names_bad_ids_and_lonely_tokens(tmp_path):
    prefix = write_pair(tmp_path / "v", [list(range(100, 121))])
    with pytest.raises(DataError, match="is 110, but"):
        held_out(prefix, 110).read([1])
    with pytest.raises(DataError, match="a loss needs two"):
        held_out(write_pair(tmp_path / "w", [[1]]), 110)


def test_the_pair_of_the_corpus_is_read_whole(text_corpus, tmp_path):
    from megatron_sky.data.ingest.tokenize import tokenize_jsonl

    meta = tokenize_jsonl([text_corpus.files["test"]["code"]], tmp_path / "code", text_corpus.tokenizer)
    data = held_out(tmp_path / "code", 600, seq_length=32)
    seen = data.read(range(data.num_sequences))
    with IndexedTokens(tmp_path / "code") as tokens:
        assert seen.labels[seen.loss_mask > 0].tolist() == tokens.read(1, meta.num_tokens - 1).tolist()


def packed(prefix):
    """Two rows of 8: samples of 3, 5 (padded by 2) and 8 tokens."""
    from megatron_sky.data.tokens.mask import mask_path, pack_header

    samples = [[0, 1, 1], [0, 0, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 2]]
    tokens = iter(range(5, 40))
    write_pair(prefix, [[next(tokens) for _ in sample] for sample in samples])
    mask_path(prefix).write_bytes(pack_header(8, 17) + bytes(flag for sample in samples for flag in sample))
    return prefix


def packed_data(prefix, seq_length=8, **settings):
    config = DataConfig(train=({"name": "chat", "path": str(prefix)},), **settings)
    sources = [open_source(prefix, vocab_size=100)]
    return TrainData(config, sources, seq_length=seq_length, vocab_size=100, sessions=[SessionMixture(0, 4)])


def test_packed_samples_are_rows_of_which_answers_count(tmp_path):
    data = packed_data(packed(tmp_path / "a"), document_mask=True)
    batch = data.read(range(2))
    by_first = {int(row[0]): number for number, row in enumerate(batch.tokens)}
    first, second = by_first[5], by_first[13]
    assert batch.loss_mask[first].tolist() == [1, 1, 0, 0, 1, 0, 0, 0]
    assert batch.loss_mask[second].tolist() == [1, 1, 1, 1, 1, 1, 1, 0]
    assert batch.document_ids[first].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert batch.position_ids[first].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    held_out = held_out_of(tmp_path / "a").read([0, 1, 2])
    assert held_out.loss_mask.sum(1).tolist() == [3, 7, 0]


def held_out_of(prefix):
    bounds = DocumentBounds(mask_attention=True)
    return ValidationData(open_source(prefix, vocab_size=100), seq_length=8, vocab_size=100, bounds=bounds)


def test_a_plain_source_counts_whole_beside_a_packed_one(tmp_path):
    write_pair(tmp_path / "b", [list(range(5, 60))])
    packed(tmp_path / "a")
    config = DataConfig(
        train=({"name": "chat", "path": str(tmp_path / "a")}, {"name": "plain", "path": str(tmp_path / "b")}),
        document_mask=True,
    )
    sources = [open_source(source.path, vocab_size=100) for source in config.train]
    data = TrainData(config, sources, seq_length=8, vocab_size=100, sessions=[SessionMixture(0, 4)])
    plain = [number for number in range(4) if data.plan.locate(number).source == 1]
    assert plain and (data.read(range(4)).loss_mask[plain] == 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_length": 4, "document_mask": True}, r"holds rows of 8 tokens.*\n.*set model\.seq_length=8"),
        ({}, r"would see each other\n.*set data\.document_mask=true"),
        ({"document_mask": True, "sampling": "megatron"}, "has no place for packed samples"),
    ],
)
def test_a_run_that_would_cut_or_mix_packed_samples_is_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        packed_data(packed(tmp_path / "a"), **settings)

"""`data chat` as a whole: the pair is proved, what was left out is accounted for, and a failure leaves nothing."""

import json

import pytest

from megatron_sky.data.chat.build import ChatOptions, write_chat
from megatron_sky.data.chat.samples import SampleMaker
from megatron_sky.data.tokens.indexed import IndexedTokens
from megatron_sky.data.tokens.mask import PADDING, TokenMask
from megatron_sky.data.tokens.meta import read_meta
from megatron_sky.data.tokens.verify import verify
from megatron_sky.errors import DataError
from tests.data.chat.conftest import GOOD

ROW = 128


@pytest.fixture(scope="module")
def written(conversations, chat_tokenizer, skywork, tmp_path_factory):
    prefix = tmp_path_factory.mktemp("out") / "chat"
    seen = []
    write_chat(
        [conversations],
        prefix,
        chat_tokenizer,
        skywork,
        ChatOptions(ROW),
        lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (conversations.stat().st_size,) * 2
    return prefix


def test_every_good_conversation_is_there_and_proved(written, chat_tokenizer, skywork):
    proved = verify(written, tokenizer=chat_tokenizer)
    assert proved.num_documents == len(GOOD) and proved.mask.rows == (proved.num_tokens - 1) // ROW
    make = SampleMaker(chat_tokenizer, skywork, row_length=ROW)
    wanted = sorted((make(record).tokens.tolist(), make(record).mask.tolist()) for record in GOOD)
    mask, held = TokenMask(written), []
    with IndexedTokens(written) as pair:
        for number in range(pair.num_documents):
            tokens = pair.document(number)
            flags = mask.read(pair.document_offset(number), len(tokens))
            held.append((tokens[flags != PADDING].tolist(), flags[flags != PADDING].tolist()))
    assert sorted(held) == wanted


def test_what_was_left_out_is_counted_by_reason_and_named_by_line(written, conversations):
    meta = read_meta(written)
    assert meta.format_version == 3 and meta.documents.read == len(GOOD) + 6
    reasons = ["ends_with_user", "unknown_role", "empty_answer", "too_long", "token_in_text", "not_json"]
    assert meta.rejected == dict.fromkeys(reasons, 1)
    lines = [json.loads(line) for line in written.with_name("chat.rejects.jsonl").read_text().splitlines()]
    assert [(line["line"], line["reason"]) for line in lines] == [
        (number, reason) for number, reason in zip([31, 32, 33, 34, 35, 66], reasons, strict=True)
    ]
    assert all(line["file"] == str(conversations) for line in lines)


def test_cut_conversations_are_counted(conversations, chat_tokenizer, skywork, tmp_path):
    meta = write_chat([conversations], tmp_path / "a", chat_tokenizer, skywork, ChatOptions(ROW, cuts_long=True))
    assert meta.mask.cut_samples == 1 and meta.mask.cut_tokens > 0 and "too_long" not in meta.rejected
    verify(tmp_path / "a", tokenizer=chat_tokenizer)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (ChatOptions(ROW, strict=True), "line 31: the last message is not"),
        (ChatOptions(8), r"none can be used .*too_long"),
    ],
)
def test_a_failure_leaves_no_pair(conversations, chat_tokenizer, skywork, tmp_path, options, told):
    with pytest.raises(DataError, match=told):
        write_chat([conversations], tmp_path / "a", chat_tokenizer, skywork, options)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.rejects.jsonl"}


def test_a_pair_that_is_there_is_kept_unless_it_may_be_replaced(conversations, chat_tokenizer, skywork, tmp_path):
    prefix = tmp_path / "a"
    first = write_chat([conversations], prefix, chat_tokenizer, skywork, ChatOptions(ROW))
    with pytest.raises(DataError, match="exists already"):
        write_chat([conversations], prefix, chat_tokenizer, skywork, ChatOptions(ROW))
    replacing = ChatOptions(ROW, overwrite=True)
    again = write_chat([conversations.parent], prefix, chat_tokenizer, skywork, replacing)
    assert again.bin_blocks == first.bin_blocks and again.mask == first.mask


def test_a_disk_that_is_full_leaves_nothing(conversations, chat_tokenizer, skywork, tmp_path, monkeypatch):
    def full(row_length, num_tokens, **_):
        if num_tokens:
            raise OSError(28, "No space left on device")
        return b"\0" * 32

    monkeypatch.setattr("megatron_sky.data.chat.build.pack_header", full)
    with pytest.raises(DataError, match="No space left"):
        write_chat([conversations], tmp_path / "a", chat_tokenizer, skywork, ChatOptions(ROW))
    assert not list(tmp_path.iterdir())


def test_the_published_sample(shared_data, chat_tokenizer, skywork, tmp_path):
    path = shared_data / "alpaca_data_zh_51k_sample_1k.jsonl"
    meta = write_chat([path], tmp_path / "a", chat_tokenizer, skywork, ChatOptions(2048))
    assert meta.documents.read == 1000 and meta.documents.written > 950
    proved = verify(tmp_path / "a", tokenizer=chat_tokenizer)
    assert proved.mask.padding_tokens / proved.num_tokens < 0.02

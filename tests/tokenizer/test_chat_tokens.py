"""Chat's tokens take reserved places, or the ones behind the last; every other id stays."""

from types import MappingProxyType

import pytest

from megatron_sky.errors import DataError
from megatron_sky.tokenizer.chat_tokens import RESERVED, with_chat_tokens, write_with_chat_tokens
from megatron_sky.tokenizer.extend import reserved_symbols
from megatron_sky.tokenizer.kinds import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from megatron_sky.tokenizer.train import train_tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 30, "人工智能是计算机科学的一个分支。" * 30]
CHATML = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def reserved(tmp_path_factory):
    path = tmp_path_factory.mktemp("reserved") / "t.model"
    return train_tokenizer(TEXTS, path, 400, reserved=reserved_symbols(4))


def test_a_reserved_piece_becomes_the_token_and_the_rest_goes_behind(reserved, tmp_path):
    ids = write_with_chat_tokens(reserved, CHATML, tmp_path / "t.model")
    made = SentencePieceTokenizer((tmp_path / "t.model").read_bytes(), "t.model")
    assert ids == {CHATML[0]: reserved.reserved_tokens["[RESERVED_0]"], CHATML[1]: reserved.vocab_size}
    assert made.vocab_size == reserved.vocab_size + 1
    assert made.encode("a<|im_end|>") == [*reserved.encode("a"), ids["<|im_end|>"]]
    text = TEXTS[0][:100] + TEXTS[1][:30]
    assert made.encode(text) == reserved.encode(text)


def test_tokens_that_are_there_are_left_alone(reserved):
    kept = SentencePieceTokenizer(with_chat_tokens(reserved, ["[USER]", "[BOT]", "[SEP]"]), "t.model")
    assert kept.reserved_tokens == reserved.reserved_tokens and kept.vocab_size == reserved.vocab_size


def test_a_hugging_face_tokenizer(tmp_path):
    pytest.importorskip("tokenizers")
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Library
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    library = Library(BPE())
    library.pre_tokenizer = ByteLevel(add_prefix_space=False)
    library.train_from_iterator(TEXTS, BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet()))
    library.add_special_tokens([AddedToken("<|reserved_special_token_0|>", special=True)])
    base = HuggingFaceTokenizer(library.to_str().encode(), "tokenizer.json")
    ids = write_with_chat_tokens(base, CHATML, tmp_path / "tokenizer.json")
    made = HuggingFaceTokenizer((tmp_path / "tokenizer.json").read_bytes(), "tokenizer.json")
    assert ids == {CHATML[0]: base.vocab_size - 1, CHATML[1]: base.vocab_size}
    assert made.encode("a<|im_end|>", parse_special=True) == [*base.encode("a"), ids["<|im_end|>"]]
    assert made.encode(TEXTS[1]) == base.encode(TEXTS[1])


def test_refusals(reserved):
    with pytest.raises(DataError, match="ordinary piece"):
        with_chat_tokens(reserved, ["a"])
    with pytest.raises(DataError, match=r"SentencePiece \.model or a tokenizer.json alone"):
        with_chat_tokens(_Other(b"", "x.tiktoken"), CHATML)


class _Other(Tokenizer):
    control_tokens = reserved_tokens = MappingProxyType({})


@pytest.mark.parametrize("text", ["[RESERVED_3]", "<|reserved_special_token_250|>", "<unused12>", "<extra_id_0>"])
def test_the_field_s_place_holders(text):
    assert RESERVED.fullmatch(text) and not RESERVED.fullmatch(text[:-1])

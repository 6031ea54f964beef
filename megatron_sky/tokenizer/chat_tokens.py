"""Chat's tokens in a tokenizer that has none: in the place of reserved ones where there are, else behind the last.

Ids that are there keep their number, so that the embedding of a trained model fits: a reserved token's row is there
already, and a token behind the last takes one of the rows by which the embedding was padded.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from megatron_sky.errors import DataError
from megatron_sky.files import parse_json, write_bytes
from megatron_sky.tokenizer.kinds import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer

RESERVED = re.compile(r"[\[<]\|?(reserved|extra|unused)[A-Za-z_]*\d+\|?[\]>]", re.IGNORECASE)
"""Place holders in the field's vocabularies: [RESERVED_0], <|reserved_special_token_0|>, <unused0>, <extra_id_0>."""


def with_chat_tokens(tokenizer: Tokenizer, symbols: Sequence[str]) -> bytes:
    """The content of the tokenizer's file with each of `symbols` as one token. Raises DataError."""
    known = {**tokenizer.control_tokens, **tokenizer.reserved_tokens}
    missing = [symbol for symbol in dict.fromkeys(symbols) if symbol not in known]
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _in_sentencepiece(tokenizer.data, missing)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return _in_hugging_face(tokenizer.data, missing)
    raise DataError(
        f"{tokenizer.name}: chat tokens can be put into a SentencePiece .model or a tokenizer.json alone\n"
        f"  fix: name them in {tokenizer.name}.json beside it, under special_tokens"
    )


def write_with_chat_tokens(tokenizer: Tokenizer, symbols: Sequence[str], out: Path) -> dict[str, int]:
    """Writes the file `out`; the ids of the symbols. Raises DataError."""
    content = with_chat_tokens(tokenizer, symbols)
    kind = type(tokenizer)
    made = kind(content, out.name)
    ids = {**made.control_tokens, **made.reserved_tokens}
    try:
        write_bytes(out, content)
    except OSError as error:
        raise DataError(f"{out} can't be written: {error.strerror}") from error
    return {symbol: ids[symbol] for symbol in symbols}


def _in_sentencepiece(data: bytes, missing: Sequence[str]) -> bytes:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(data)
    kinds = ModelProto.SentencePiece
    free = [piece for piece in proto.pieces if RESERVED.fullmatch(piece.piece) and piece.type != kinds.BYTE]
    for symbol in missing:
        if any(piece.piece == symbol for piece in proto.pieces):
            raise DataError(f"{symbol!r} is an ordinary piece of the vocabulary\n  fix: choose another template")
        if free:
            piece = free.pop(0)
            piece.piece, piece.type, piece.score = symbol, kinds.USER_DEFINED, 0.0
        else:
            proto.pieces.add(piece=symbol, score=0.0, type=kinds.USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


def _in_hugging_face(data: bytes, missing: Sequence[str]) -> bytes:
    content = parse_json(data)
    added, vocab = content.setdefault("added_tokens", []), content["model"].get("vocab")
    free = [token for token in added if RESERVED.fullmatch(token["content"])]
    held = vocab.values() if isinstance(vocab, dict) else range(len(vocab or ()))
    last = max([*held, *(token["id"] for token in added)], default=-1)
    for symbol in missing:
        if free:
            token = free.pop(0)
            if isinstance(vocab, dict) and token["content"] in vocab:
                vocab[symbol] = vocab.pop(token["content"])
            token["content"] = symbol
        else:
            last += 1
            added.append({"id": last, "content": symbol})
            token = added[-1]
        token |= {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    return json.dumps(content, ensure_ascii=False, indent=2).encode()

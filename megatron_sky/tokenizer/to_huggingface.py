"""The tokenizer's files of a Hugging Face folder, from the checkpoint's tokenizer.

A SentencePiece model goes along as `tokenizer.model`, and is written a second time as `tokenizer.json` where the
`tokenizers` package is installed, for transformers' fast tokenizers. That file is kept only after it has given
SentencePiece's ids on sample text. Chat's symbols become added tokens: text between them is encoded on its own, each
piece with SentencePiece's leading space, which is how the published Skywork chat code encodes a conversation.

`to_tokenizers` needs the `tokenizers` package alone. transformers has a converter of its own that gives the same ids;
it is an inner function of its latest versions, which the versions before lack, and makes no added tokens of symbols.
"""

import json
from pathlib import Path

from megatron_sky.errors import MissingDependency
from megatron_sky.files import read_json
from megatron_sky.log import get_logger
from megatron_sky.tokenizer import files as tokenizer_files
from megatron_sky.tokenizer.chat_template import SKYWORK, SYMBOLS, without_generation
from megatron_sky.tokenizer.kinds import SentencePieceTokenizer, load_tokenizer
from megatron_sky.tokenizer.sample_text import SAMPLES

log = get_logger(__name__)

CHAT_SYMBOLS = SYMBOLS["skywork"]
CHAT_TEMPLATE = without_generation(SKYWORK)  # older readers of templates do not know the tag


def write(path: Path, folder: Path, *, adds_begin: bool) -> dict[str, int]:
    """Writes the files of the tokenizer at `path` into `folder`; returns the ids of its special tokens (`bos_token_id`
    ...).

    What Hugging Face's libraries keep beside the file goes along as it is, with its chat template and its settings.
    `adds_begin`: whether those who load the folder get a begin token before a text.
    """
    tokenizer = load_tokenizer(path)
    tokenizer_files.copy(path, folder, settings=True)
    if isinstance(tokenizer, SentencePieceTokenizer) and not (folder / tokenizer_files.JSON).is_file():
        return _write_sentencepiece(tokenizer, folder, adds_begin=adds_begin and tokenizer.bos_id is not None)
    if not adds_begin and tokenizer_files.adds_begin(folder / tokenizer_files.JSON):
        _take_begin_out(folder)
    if path.suffix == tokenizer_files.RANKS:
        log.warning("%s goes along as it is: transformers reads no tiktoken ranks by themselves", path.name)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eod_id}
    return {name: token_id for name, token_id in ids.items() if token_id is not None}


def _take_begin_out(folder: Path) -> None:
    """Has tokenizer.json and its settings add nothing to a text, as in training here."""
    path = folder / tokenizer_files.JSON
    content = read_json(path)
    content["post_processor"] = _without_template(content["post_processor"])
    _write_json(path, content)
    path = folder / tokenizer_files.SETTINGS
    if path.is_file():
        settings = read_json(path)
        _write_json(path, settings | {"add_bos_token": False, "add_eos_token": False})


def _without_template(processor: dict | None) -> dict | None:
    if processor is None or processor["type"] == "TemplateProcessing":
        return None
    if processor["type"] != "Sequence":
        return processor
    kept = [left for part in processor["processors"] if (left := _without_template(part)) is not None]
    return processor | {"processors": kept} if kept else None


def _write_sentencepiece(
    tokenizer: SentencePieceTokenizer, folder: Path, *, adds_begin: bool = False
) -> dict[str, int]:
    """Writes what is missing beside tokenizer.model; settings that are there keep what they say of other things."""
    processor = tokenizer.processor
    ids = {
        name: token_id
        for name, token_id in (
            ("bos", processor.bos_id()),
            ("eos", processor.eos_id()),
            ("unk", processor.unk_id()),
            ("pad", processor.pad_id()),
        )
        if token_id >= 0
    }
    tokens = {f"{name}_token": tokenizer.piece(token_id) for name, token_id in ids.items()}
    fast = _write_fast(tokenizer, folder, adds_begin)
    settings = {**tokens, "clean_up_tokenization_spaces": False, "legacy": True, "model_max_length": 10**30}
    if set(CHAT_SYMBOLS) <= set(tokenizer.special_texts) and not (folder / tokenizer_files.CHAT_TEMPLATE).is_file():
        settings["chat_template"] = CHAT_TEMPLATE
    settings |= tokenizer_files.read_table(folder / tokenizer_files.SETTINGS)
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast" if fast else "LlamaTokenizer",
        "add_bos_token": adds_begin,
        "add_eos_token": False,
    }
    if "chat_template" not in settings and not (folder / tokenizer_files.CHAT_TEMPLATE).is_file():
        log.info("no chat template: %s are not tokens of this vocabulary", ", ".join(CHAT_SYMBOLS))
    _write_json(folder / tokenizer_files.SETTINGS, settings)
    if not (folder / "special_tokens_map.json").is_file():
        _write_json(folder / "special_tokens_map.json", tokens)
    return {f"{name}_token_id": token_id for name, token_id in ids.items() if name != "unk"}


def _write_fast(tokenizer: SentencePieceTokenizer, folder: Path, adds_begin: bool) -> bool:
    """Writes tokenizer.json if it can be made and gives SentencePiece's ids; says why where it isn't written."""
    try:
        fast = to_tokenizers(tokenizer)
    except (MissingDependency, Unconvertible) as error:
        log.warning("no tokenizer.json: %s", error)
        return False
    for text in SAMPLES:
        if fast.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            log.warning("no tokenizer.json: it would give other ids than SentencePiece on %r", text[:60])
            return False
    if adds_begin:
        from tokenizers.processors import TemplateProcessing

        assert tokenizer.bos_id is not None
        begin = tokenizer.piece(tokenizer.bos_id)
        fast.post_processor = TemplateProcessing(
            single=f"{begin}:0 $A:0", pair=f"{begin}:0 $A:0 {begin}:1 $B:1", special_tokens=[(begin, tokenizer.bos_id)]
        )
    (folder / "tokenizer.json").write_text(fast.to_str(pretty=True), encoding="utf-8")
    return True


class Unconvertible(Exception):
    """A SentencePiece model of a kind that the `tokenizers` package has no equal of; the text says which."""


def to_tokenizers(tokenizer: SentencePieceTokenizer):
    """The `tokenizers.Tokenizer` that does what the SentencePiece model does.

    Raises:
        MissingDependency: the package is not installed.
        Unconvertible: it has no such kind of model.
    """
    try:
        from tokenizers import AddedToken, Tokenizer, decoders
    except ImportError:
        raise MissingDependency("tokenizers", "Hugging Face's form", "pip install 'megatron-sky[hf]'") from None
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(tokenizer.data)
    kinds = ModelProto.SentencePiece
    fast = Tokenizer(_model(proto, tokenizer.processor.unk_id()))
    fast.normalizer = _normalizer(proto.normalizer_spec)
    strip = [decoders.Strip(content=" ", left=1)] if proto.normalizer_spec.add_dummy_prefix else []
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    by_kind = {
        kind: [
            AddedToken(p.piece, normalized=False, special=kind != kinds.USER_DEFINED)
            for p in proto.pieces
            if p.type == kind
        ]
        for kind in (kinds.UNKNOWN, kinds.CONTROL, kinds.USER_DEFINED)
    }
    fast.add_special_tokens([*by_kind[kinds.UNKNOWN], *by_kind[kinds.CONTROL]])
    fast.add_tokens(by_kind[kinds.USER_DEFINED])
    return fast


def _model(proto, unknown_id: int):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec
    from tokenizers import models

    kinds, kind = ModelProto.SentencePiece, proto.trainer_spec.model_type
    has_bytes = any(piece.type == kinds.BYTE for piece in proto.pieces)
    if kind == TrainerSpec.UNIGRAM:
        return models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], unknown_id, has_bytes)
    if kind != TrainerSpec.BPE:
        raise Unconvertible("only SentencePiece's BPE and unigram models are turned into one")
    return models.BPE(
        {piece.piece: token_id for token_id, piece in enumerate(proto.pieces)},
        _merges(proto, kinds.NORMAL),
        unk_token=proto.pieces[unknown_id].piece,
        fuse_unk=True,
        byte_fallback=has_bytes,
    )


def _merges(proto, normal: int) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, by the score of the result, as SentencePiece merges."""
    normal_pieces = [
        (piece.score, -number, piece.piece) for number, piece in enumerate(proto.pieces) if piece.type == normal
    ]
    known = {piece for _, _, piece in normal_pieces}
    return [
        (piece[:cut], piece[cut:])
        for _, _, piece in sorted(normal_pieces, reverse=True)
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def _normalizer(spec):
    from tokenizers import Regex, normalizers

    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

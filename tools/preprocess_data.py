"""JSONL to .bin/.idx under the flags of Megatron-LM's script of this name; `megatron-sky data tokenize` does the work.

The files are the ones that script writes, byte for byte, with a `.meta.json` beside them; but the spelling of a
control token in a text stays text, unless --parse-special is given. Flags that have no use here are taken and named.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_sky.data.ingest.input_files import describe_files
from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.errors import SkyError
from megatron_sky.tokenizer.files import to_json

IGNORED = {
    "partitions": "the order is always kept and all workers share the input",
    "keep_sequential_samples": "the order is always kept",
    "find_optimal_num_workers": "give --workers",
    "workers_to_check": "give --workers",
    "max_documents": "give --workers",
    "lang": "what ends a sentence is learnt from the text",
    "vocab_size": "the tokenizer's file says its size",
    "padded_vocab_size": "padding is the model's (model.vocab_multiple)",
    "make_vocab_size_divisible_by": "padding is the model's (model.vocab_multiple)",
    "tokenizer_metadata": "the tokenizer's file says its kind",
    "trust_remote_code": "no code of a tokenizer's folder is run",
}
# Flags of other kinds of tokenizers, and what to give instead.
_OTHER = {
    "vocab_file": "--tokenizer-model tokenizer.json",
    "merge_file": "--tokenizer-model tokenizer.json",
    "tiktoken_pattern": "--tokenizer-model NAME.tiktoken, and the pattern in NAME.tiktoken.json (docs/data.md)",
    "tiktoken_num_special_tokens": "the special tokens in NAME.tiktoken.json (docs/data.md)",
    "tiktoken_special_tokens": "the special tokens in NAME.tiktoken.json (docs/data.md)",
    "tokenizer_special_tokens": "a tokenizer file that has them: tokenizer.json, or a .model with them as symbols",
    "vocab_extra_ids": "a tokenizer file that has them: tokenizer.json, or a .model with them as symbols",
}


def parse_args(given: list[str] | None = None) -> argparse.Namespace:
    """The flags of Megatron-LM's preprocess_data.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("input and output")
    data.add_argument("--input", required=True, help="JSONL file, folder or glob")
    data.add_argument("--json-keys", nargs="+", default=["text"], help="names of the texts")
    data.add_argument("--output-prefix", required=True, help="files are named <prefix>_<key>_document.bin and .idx")
    data.add_argument("--split-sentences", action="store_true", help="a document's sequences are its sentences")
    data.add_argument("--keep-newlines", action="store_true", help="keep the white space between sentences")
    data.add_argument("--append-eod", action="store_true", help="end each document with the end-of-document token")
    data.add_argument("--parse-special", action="store_true", help="control tokens spelt in a text become those tokens")
    tokenizer = parser.add_argument_group("tokenizer")
    tokenizer.add_argument("--tokenizer-type", default=None, help="taken for compatibility; the file tells its kind")
    tokenizer.add_argument("--tokenizer-model", help=".model, tokenizer.json, .tiktoken, or their folder")
    for name in _OTHER:
        tokenizer.add_argument(_flag(name), nargs="+", help=argparse.SUPPRESS)
    work = parser.add_argument_group("work")
    work.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="worker processes")
    work.add_argument("--log-interval", type=int, default=1000, help="taken for compatibility; progress is in bytes")
    for name in ("keep_sequential_samples", "find_optimal_num_workers", "trust_remote_code"):
        work.add_argument(_flag(name), action="store_true", help=argparse.SUPPRESS)
    for name in IGNORED.keys() - {"keep_sequential_samples", "find_optimal_num_workers", "trust_remote_code"}:
        work.add_argument(_flag(name), nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    _check_tokenizer(parser, args)
    for name, why in IGNORED.items():
        if getattr(args, name):
            print(f"{_flag(name)} is ignored: {why}")
    return args


def _check_tokenizer(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where what is given names no file that this program reads a tokenizer from."""
    if others := [name for name in _OTHER if getattr(args, name)]:
        flags = " and ".join(map(_flag, others))
        vocab, merges = ((getattr(args, name) or [None])[0] for name in ("vocab_file", "merge_file"))
        is_bpe = merges is not None or "BPE" in (args.tokenizer_type or "")
        how = f": {to_json(vocab or 'vocab.json', (merges or 'merges.txt') if is_bpe else None)}"
        parser.error(f"{flags} can't be used here\n  fix: give {_OTHER[others[0]]}{how if vocab or merges else ''}")
    if args.tokenizer_model is None:
        kind = f" (of {args.tokenizer_type})" if args.tokenizer_type else ""
        parser.error(f"no tokenizer{kind}\n  fix: give --tokenizer-model: a .model, tokenizer.json or .tiktoken file")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def main(given: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    args = parse_args(given)
    level = "sentence" if args.split_sentences else "document"
    options = TokenizeOptions(
        keys=tuple(args.json_keys),
        append_eod=args.append_eod,
        split_sentences=args.split_sentences,
        keep_newlines=args.keep_newlines,
        parse_special=args.parse_special,
        workers=args.workers,
        overwrite=True,
        names=tuple(f"{args.output_prefix}_{key}_{level}" for key in args.json_keys),
    )
    try:
        metas = tokenize_files([args.input], args.output_prefix, args.tokenizer_model, options)
    except SkyError as error:
        print(f"preprocess_data: {error}", file=sys.stderr)
        return error.exit_code
    if metas[0].files is not None:
        print(describe_files(metas[0].files))
    for key, meta in zip(args.json_keys, metas, strict=True):
        counts = meta.documents
        print(f"{key}: {counts.read:,} documents read, {counts.rejected:,} rejected, {meta.num_tokens:,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())

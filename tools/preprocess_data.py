"""JSONL to .bin/.idx under the flags of Megatron-LM's script of this name; `megatron-sky data tokenize` does the work.

The files are the ones that script writes, byte for byte, with a `.meta.json` beside them. Flags that have no use here
are taken and said to be ignored.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_sky.data.ingest.tokenize import TokenizeOptions, tokenize_files
from megatron_sky.errors import SkyError

IGNORED = (
    "partitions",
    "keep_sequential_samples",
    "find_optimal_num_workers",
    "workers_to_check",
    "max_documents",
    "lang",
)


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
    tokenizer = parser.add_argument_group("tokenizer")
    tokenizer.add_argument("--tokenizer-type", default=None, help="taken for compatibility; the file tells its kind")
    tokenizer.add_argument("--tokenizer-model", help=".model, tokenizer.json, .tiktoken, or their folder")
    tokenizer.add_argument("--vocab-file", help="GPT-2's pair of files is not read: see the message")
    tokenizer.add_argument("--merge-file", help="GPT-2's pair of files is not read: see the message")
    work = parser.add_argument_group("work")
    work.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="worker processes")
    work.add_argument("--log-interval", type=int, default=1000, help="taken for compatibility; progress is in bytes")
    work.add_argument("--partitions", type=int, default=1)
    work.add_argument("--keep-sequential-samples", action="store_true")
    work.add_argument("--find-optimal-num-workers", action="store_true")
    work.add_argument("--workers-to-check", nargs="+", type=int, default=[16, 32, 64])
    work.add_argument("--max-documents", type=int, default=100_000)
    work.add_argument("--lang", default="english")
    args = parser.parse_args(given)
    if args.tokenizer_model is None and (args.vocab_file or args.merge_file):
        vocabulary, merges = args.vocab_file or "vocab.json", args.merge_file or "merges.txt"
        parser.error(
            f"--vocab-file {vocabulary} --merge-file {merges}: a tokenizer is one file here, --tokenizer-model\n"
            f'  fix: make it with transformers, then give --tokenizer-model gpt2/tokenizer.json:\n  python -c "from '
            f"transformers import GPT2TokenizerFast as T; T({vocabulary!r}, {merges!r}).save_pretrained('gpt2')\""
        )
    if args.tokenizer_model is None:
        parser.error("the following arguments are required: --tokenizer-model")
    for name in IGNORED:
        if getattr(args, name) != parser.get_default(name):
            print(f"--{name.replace('_', '-')} is ignored: the order is always kept and all workers share the input")
    return args


def main(given: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    args = parse_args(given)
    level = "sentence" if args.split_sentences else "document"
    options = TokenizeOptions(
        keys=tuple(args.json_keys),
        append_eod=args.append_eod,
        split_sentences=args.split_sentences,
        keep_newlines=args.keep_newlines,
        workers=args.workers,
        overwrite=True,
        names=tuple(f"{args.output_prefix}_{key}_{level}" for key in args.json_keys),
    )
    try:
        metas = tokenize_files([args.input], args.output_prefix, args.tokenizer_model, options)
    except SkyError as error:
        print(f"preprocess_data: {error}", file=sys.stderr)
        return error.exit_code
    for key, meta in zip(args.json_keys, metas, strict=True):
        counts = meta.documents
        print(f"{key}: {counts.read:,} documents read, {counts.rejected:,} rejected, {meta.num_tokens:,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())

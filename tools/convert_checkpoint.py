"""Checkpoint conversion under the names and flags that Megatron-LM's users know.

    python tools/convert_checkpoint.py --saver hf --load-dir save/iter_0001000 --save-dir out --tokenizer-model t.model
    python tools/convert_checkpoint.py --saver native --load-dir hf_folder --save-dir out

What kind of folder --load-dir is, its files show. The same as `megatron-sky convert to-hf | from-hf | from-megatron`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import SkyError
from megatron_sky.log import get_logger, setup_logging

log = get_logger(__name__)


def main() -> None:
    arguments = parse()
    setup_logging(0, 1, None)
    try:
        convert(arguments)
    except SkyError as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--load-dir", type=Path, required=True, help="native, Megatron-LM or Hugging Face folder")
    parser.add_argument("--save-dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--saver", choices=["hf", "native"], required=True, help="format to write")
    parser.add_argument("--architecture", help="with --saver hf: the architecture's name; default: what fits")
    parser.add_argument("--tokenizer-model", type=Path, help="tokenizer file")
    parser.add_argument("--true-vocab-size", type=int, help="vocabulary size without padding")
    parser.add_argument("--make-vocab-size-divisible-by", type=int, help="with --saver native: the embedding's padding")
    parser.add_argument("--recipe", type=Path, help="YAML file with a model section, for folders that describe none")
    for unneeded in ("--model-type", "--loader", "--target-tensor-parallel-size", "--target-pipeline-parallel-size"):
        parser.add_argument(unneeded, help="accepted and not needed: any layout loads the result")
    return parser.parse_args(argv)


def convert(arguments: argparse.Namespace) -> None:
    for name in ("model_type", "loader", "target_tensor_parallel_size", "target_pipeline_parallel_size"):
        if (value := getattr(arguments, name)) is not None:
            log.info("--%s %s has no effect", name.replace("_", "-"), value)
    source = open_source(
        arguments.load_dir,
        tokenizer=arguments.tokenizer_model,
        vocab_size=arguments.true_vocab_size,
        recipe=arguments.recipe,
    )
    if arguments.saver == "hf":
        done = write_hf(source, arguments.save_dir, architecture=arguments.architecture)
    else:
        done = write_native(source, arguments.save_dir, vocab_multiple=arguments.make_vocab_size_divisible_by)
    print(f"{done.folder}: {done.num_tensors} tensors, each compared as it was written")


if __name__ == "__main__":
    main()

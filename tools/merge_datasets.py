"""All .bin/.idx pairs of a folder into one, under the flags of Megatron-LM's script of this name."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_sky.data.tokens.merge import merge, pairs_in_folder
from megatron_sky.errors import SkyError


def main(given: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="folder of the pairs, joined in alphabetical order")
    parser.add_argument("--output-prefix", required=True, help="path of the new pair without an ending")
    args = parser.parse_args(given)
    try:
        prefixes = pairs_in_folder(args.input, out=args.output_prefix)
        merge(prefixes, args.output_prefix, overwrite=True)
    except SkyError as error:
        print(f"merge_datasets: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{args.output_prefix}: {len(prefixes)} pairs merged")
    return 0


if __name__ == "__main__":
    sys.exit(main())

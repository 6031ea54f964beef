"""Parameters and memory of a rank, under the flags of Megatron-LM's script of this name.

The number of ranks is WORLD_SIZE of the environment, as there; without it, the product of the parallel sizes.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_sky.errors import SkyError
from megatron_sky.planner.megatron_report import theoretical_memory


def main(given: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    arguments = sys.argv[1:] if given is None else given
    if not arguments or set(arguments) & {"-h", "--help"}:
        print(__doc__, "Example: WORLD_SIZE=512 report_theoretical_memory.py --num-layers 52 --hidden-size 4608 ...")
        return 0
    try:
        print("\n".join(theoretical_memory(arguments, int(os.environ.get("WORLD_SIZE", "0")) or None)))
    except SkyError as error:
        print(f"report_theoretical_memory: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

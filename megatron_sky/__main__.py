"""`python -m megatron_sky ...`: the same commands as `megatron-sky`, for torchrun and srun."""

from megatron_sky.cli.main import main

# megatron-core's checkpoint writer spawns a process that imports this file again: without the guard it would recurse.
if __name__ == "__main__":
    main()

"""What a job would need and how fast it would be, known before a GPU is asked for.

Two ways: `rehearsal` runs the program itself without a GPU; the closed forms beside it (no torch) predict memory and
speed of a `Job` from published figures of GPUs, fast enough to search all layouts.
"""

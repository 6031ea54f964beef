"""A checkpoint as a server: which engine, on which address, until it is told to end."""

import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from megatron_sky.distributed import device
from megatron_sky.errors import ConfigError, MissingDependency, Problem, RunError
from megatron_sky.generation.run import Opened, open_engine
from megatron_sky.inference.checkpoints import HF, open_checkpoint
from megatron_sky.log import get_logger
from megatron_sky.serve.limits import Limits

log = get_logger(__name__)

KEY_VARIABLE = "MEGATRON_SKY_API_KEY"
_INSTALL = "pip install 'megatron-sky[serve]'"


def serve(
    folder: Path,
    *,
    host: str,
    port: int,
    limits: Limits,
    engine: str = "auto",
    chat_template: str | None = None,
    dtype: str | None = None,
    base: Path | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM; answers that run then have five seconds.

    Raises ConfigError for an address that others reach without a key; MissingDependency; the checkpoint's errors.
    """
    limits = replace(limits, api_key=os.environ.get(KEY_VARIABLE) or None, loopback_only=is_loopback(host))
    if not limits.loopback_only and limits.api_key is None:
        fix = f"set {KEY_VARIABLE}, or leave --host out"
        raise ConfigError(Problem("--host", "others reach it, and there is no API key", fix, host))
    chosen, reason = choose_engine(folder, engine)
    log.info("engine: %s, since %s", chosen, reason)
    if chosen == "vllm":
        _become_vllm(folder, host, port, chat_template, dtype)
    load = partial(open_engine, folder, dtype=dtype, chat_template=chat_template, base=base)
    _serve_here(host, port, limits, load)


def is_loopback(host: str) -> bool:
    return host in ("127.0.0.1", "::1", "localhost")


def choose_engine(folder: Path, given: str) -> tuple[str, str]:
    """(vllm or transformers, why). Raises ConfigError where vLLM is asked for and can't be."""
    if given not in ("auto", "vllm", "transformers"):
        raise ConfigError(Problem("--engine", "must be auto, vllm or transformers", value=given))
    if given == "transformers":
        return given, "it was asked for"
    reasons = []
    if not device.has_gpu():
        reasons.append("there is no GPU")
    if not device.can_import("vllm"):
        reasons.append("vLLM is not installed")
    if open_checkpoint(folder).kind != HF:
        reasons.append("vLLM reads Hugging Face folders alone (megatron-sky convert to-hf writes one)")
    if not reasons:
        return "vllm", "there is a GPU, and vLLM is installed"
    if given == "vllm":
        raise ConfigError(Problem("--engine", "; ".join(reasons), "leave it out", given))
    return "transformers", "; ".join(reasons)


def _become_vllm(folder: Path, host: str, port: int, chat_template: str | None, dtype: str | None) -> None:
    """This process becomes vLLM's own server; the key goes by the environment, where nobody lists it."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", open_checkpoint(folder).name, "--host", host, "--port", str(port)]
    command += ["--chat-template", chat_template] if chat_template else []
    command += ["--dtype", dtype] if dtype else []
    key = os.environ.get(KEY_VARIABLE)
    environment = os.environ | ({"VLLM_API_KEY": key} if key else {})
    log.info("limits of this verb are not vLLM's; its own hold")
    os.execve(command[0], command, environment)


def _serve_here(host: str, port: int, limits: Limits, load: Callable[[], Opened]) -> None:
    try:
        import fastapi  # noqa: F401 (its absence is told before the model is loaded)
        import uvicorn
    except ImportError as error:
        raise MissingDependency(error.name or "fastapi", "serve", _INSTALL) from None
    from megatron_sky.serve.app import Service, build_app
    from megatron_sky.serve.scheduler import Scheduler

    listener = _listen(host, port)
    opened = load()
    if opened.template is None:
        log.warning("no chat template: /v1/chat/completions answers 400; --chat-template gives one")
    scheduler = Scheduler(opened.engine, batch_size=limits.batch_size, most=limits.max_requests)
    service = Service(opened, scheduler, limits, int(time.time()))
    settings = uvicorn.Config(
        build_app(service),
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 << 10,
        server_header=False,
    )
    shown = f"[{host}]" if ":" in host else host
    log.info("%s: http://%s:%d (API under /v1, a page to try it at /)", opened.checkpoint.name, shown, port)
    try:
        uvicorn.Server(settings).run(sockets=[listener])
    finally:
        scheduler.close()
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """A socket on the address, taken before the model is loaded. Raises RunError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise RunError(f"--host {host} --port {port}: {error.strerror or error}\n  fix: choose another port") from error
    return listener

"""What the ranks of a test do: megatron-core wants a process prepared before it is imported; a rank is."""

import json
from pathlib import Path

from megatron_sky.distributed.context import close_context
from megatron_sky.errors import SkyError
from megatron_sky.evaluate.run import Options, evaluate_leakage, evaluate_loss


def loss(info, checkpoints: list[str], data: list[str], out: str, options: dict | None = None) -> str | None:
    """Evaluates into `out`; the message of an error for the user, or the models that failed, or None."""
    options = dict(options or {})
    reference = options.pop("reference_tokenizer", None)
    try:
        found = evaluate_loss(
            checkpoints, data, Options(**options), reference_tokenizer=reference, out=Path(out), info=info
        )
    except SkyError as error:
        return _told(error)
    return " ".join(found.failed) or None


def leakage(info, checkpoints: list[str], files: dict, out: str, more: dict) -> str | None:
    """The same for leakage."""
    options = Options(**more.get("options", {}))
    more = {name: value for name, value in more.items() if name != "options"}
    try:
        found = evaluate_leakage(checkpoints, files, options, out=Path(out), info=info, **more)
    except SkyError as error:
        return _told(error)
    return " ".join(found.failed) or None


def _told(error: SkyError) -> str:
    """The error in words; the groups that a failing run leaves are left."""
    import torch.distributed

    if torch.distributed.is_initialized():
        close_context()
    return f"{type(error).__name__}: {error}"


def hf_losses(info, folder: str, texts: list[str], context: int) -> list[float]:
    """Each text's loss by transformers itself: one at a time, its begin token before it; beyond the context each token
    from the `context` tokens before it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sums = []
    for text in texts:
        ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            total = 0.0
            for end in range(1, len(ids)):
                before = torch.tensor([ids[max(0, end - context) : end]])
                total -= torch.log_softmax(model(before).logits[0, -1].double(), -1)[ids[end]].item()
        sums.append(total)
    return sums


def documents(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

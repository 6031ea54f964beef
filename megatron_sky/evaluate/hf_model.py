"""A Hugging Face folder run by transformers. No code of the folder runs."""

from pathlib import Path

import torch

from megatron_sky.errors import CheckpointError
from megatron_sky.evaluate.checkpoints import hf_settings, is_skywork, transformers_for
from megatron_sky.evaluate.scoring import losses_of_logits, row_chunks


class HfModel:
    """A `scoring.Model`. Every rank holds the whole model and takes a share of the batches."""

    answers = True

    def __init__(self, folder: Path, context):
        self.device, self.share, self.shares = context.device, context.rank, context.world_size
        self._model = _load(folder)
        wide = torch.float32 if context.device.type == "cpu" else self._model.config.dtype or torch.float32
        self._model = self._model.to(device=context.device, dtype=wide).eval()

    def losses(self, tokens, places, targets):
        logits = self._logits(tokens)
        parts = [
            losses_of_logits(logits[places[rows]], targets[rows]) for rows in row_chunks(len(places), len(logits[0]))
        ]
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def next_logits(self, tokens, places):
        return self._logits(tokens)[places].float()

    def _logits(self, tokens):
        """`[b * s, V]`. Without a mask: padding lies to the right, where a causal model does not look."""
        return self._model(input_ids=tokens, use_cache=False).logits.flatten(0, 1)


def _load(folder: Path):
    transformers = transformers_for(folder)
    transformers.utils.logging.disable_progress_bar()
    settings = hf_settings(folder)
    try:
        if is_skywork(settings):
            config = transformers.LlamaConfig.from_dict(settings | {"model_type": "llama"})
            return transformers.LlamaForCausalLM.from_pretrained(str(folder), config=config)
        return transformers.AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers can't load it: {error}") from error

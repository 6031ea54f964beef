"""A model of transformers with random weights and a tokenizer of characters: an engine without a checkpoint."""

from megatron_sky.generation.engine import Engine
from tests.tokenizer.test_coder import coder

END = 2


def engine(context: int = 64, kind: str = "llama", ends: tuple[int, ...] = (END,)) -> Engine:
    import torch
    import transformers

    torch.manual_seed(3)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=304,  # four more than the tokenizer has
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=context,
            initializer_range=0.5,
        )
    else:
        config = transformers.GPT2Config(
            vocab_size=304, n_embd=32, n_layer=2, n_head=2, n_positions=context, initializer_range=0.5
        )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = transformers.GenerationConfig()
    return Engine(model, coder(), context, frozenset(ends))

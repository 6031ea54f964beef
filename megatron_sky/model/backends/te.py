"""The Transformer Engine backend: megatron-core's own layer spec with fused norm+linear and fused attention.

GPU only. Its checkpoint names are the torch backend's, so either loads the other's weights.
"""


def layer_spec():
    """(layer spec, final norm class) from megatron-core's Transformer Engine modules."""
    from megatron.core.extensions.transformer_engine import TENorm
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    return get_gpt_layer_with_transformer_engine_spec(), TENorm

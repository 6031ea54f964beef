"""Models as the trainer builds them, in a rank's process."""


def build(config, context, **more):
    """The recipe's model on this rank; `more`: other arguments of `build_model`."""
    from megatron_sky.model.build import build_model

    sections = {"parallel": config.parallel, "precision": config.precision, "train": config.train}
    return build_model(config.model, **sections, context=context, **more)

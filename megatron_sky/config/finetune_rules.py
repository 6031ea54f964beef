"""What a recipe's `finetune` section can't be combined with."""

from megatron_sky.config.schema import Config
from megatron_sky.errors import Problem


def finetune_problems(config: Config) -> list[Problem]:
    """The broken rules of fine-tuning."""
    tuning = config.finetune
    if tuning is None:
        return []
    problems = []
    if config.checkpoint.init_from is not None:
        rule, fix = "has no effect beside finetune.base, which the weights come from", "leave one of the two out"
        problems.append(Problem("checkpoint.init_from", rule, fix, config.checkpoint.init_from))
    if tuning.lora is not None and config.precision.fp8 is not None:
        rule = "can't multiply what adapters add to"
        problems.append(Problem("precision.fp8", rule, "set precision.fp8=null, or finetune.lora=null"))
    if tuning.lora is not None and config.model.backend == "te":
        rule = "keeps norm and linear in one, so that an adapter has no input of its own"
        problems.append(Problem("model.backend", rule, "set model.backend=auto with finetune.lora", "te"))
    if tuning.dpo is not None and config.parallel.cp_size > 1:
        rule = "cuts the answers whose log-probabilities finetune.dpo sums up"
        problems.append(Problem("parallel.cp_size", rule, "set parallel.cp_size=1", config.parallel.cp_size))
    if tuning.dpo is not None and config.validation.reference_tokenizer is not None:
        rule = "normalises a loss per token, and finetune.dpo has one per pair"
        fix = "leave it out"
        problems.append(Problem("validation.reference_tokenizer", rule, fix, config.validation.reference_tokenizer))
    return problems

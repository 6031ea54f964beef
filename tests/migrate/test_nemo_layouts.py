"""The layouts of configurations: a NeMo 2 recipe, and files that are no whole configuration."""

import pytest

from megatron_sky.errors import ConfigError
from megatron_sky.migrate.nemo import read_configuration, translate_configuration
from megatron_sky.migrate.translation import TO_GIVE

NEMO = """
_partial_: true
_target_: nemo.collections.llm.api.pretrain
data:
  _target_: nemo.collections.llm.gpt.data.pre_training.PreTrainingDataModule
  global_batch_size: 128
  micro_batch_size: 1
  paths: [30, a, 70, b]
  seq_length: 8192
  tokenizer: {_target_: nemo.collections.common.tokenizers.AutoTokenizer, pretrained_model_name: meta/llama}
log: {_target_: nemo.lightning.nemo_logger.NeMoLogger, log_dir: runs/nemo, name: default, tensorboard: null}
model:
  _target_: nemo.collections.llm.gpt.model.llama.LlamaModel
  config: {_target_: nemo.collections.llm.gpt.model.llama.Llama3Config8B, num_layers: 32, cross_entropy_fusion_impl: te}
optim:
  _target_: nemo.lightning.pytorch.optim.megatron.MegatronOptimizerModule
  config: {adam_beta1: 0.9, adam_beta2: 0.95, bf16: true, clip_grad: 1.0, lr: 0.0003, optimizer: adam,
    use_distributed_optimizer: true, weight_decay: 0.1}
  lr_scheduler: {_target_: nemo.CosineAnnealingScheduler, constant_steps: 0, min_lr: 3.0e-05, warmup_steps: 20}
resume: {_target_: nemo.lightning.resume.AutoResume, resume_if_exists: true}
trainer:
  _target_: nemo.lightning.pytorch.trainer.Trainer
  accelerator: gpu
  devices: 8
  num_nodes: 2
  limit_val_batches: 4
  log_every_n_steps: 1
  max_steps: 1000
  plugins: {precision: bf16-mixed, grad_reduce_in_fp32: false, params_dtype: {_call_: false, _target_: torch.bfloat16}}
  strategy:
    tensor_model_parallel_size: 4
    virtual_pipeline_model_parallel_size: null
    ddp: {grad_reduce_in_fp32: true, overlap_grad_reduce: true}
  val_check_interval: 100
"""


def test_a_nemo_2_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(NEMO, encoding="utf-8")
    done = translate_configuration(read_configuration(path), name=path.name)
    recipe = done.recipe
    assert recipe["model"]["num_layers"] == 32 and recipe["model"]["seq_length"] == 8192
    assert recipe["model"]["hidden_size"] == recipe["model"]["activation"] == TO_GIVE  # of the class Llama3Config8B
    assert any(line.startswith("model.hidden_size: the file does not say") for line in done.to_give)
    assert recipe["parallel"]["tp_size"] == 4 and recipe["precision"]["dtype"] == "bf16"
    assert recipe["schedule"]["style"] == "cosine" and recipe["schedule"]["warmup_tokens"] == 20 * 128 * 8192
    assert recipe["train"]["tokens"] == 1000 * 128 * 8192 and recipe["train"]["run_dir"] == "runs/nemo"
    assert [source["weight"] for source in recipe["data"]["train"]] == [30.0, 70.0]
    assert recipe["validation"] == {"interval": "100 steps", "max_sequences": 512}
    assert (done.nodes, done.gpus_per_node) == (2, 8)
    assert not done.no_counterpart


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("train: {train_iters: 10}\n", "has no sections model and train"),
        ("trainer: {max_steps: 5}\nmodel: {encoder_seq_length: 512}\n", "has no model.config"),
        ("[1, 2]\n", "has no sections model and train"),
        ("a: [\n", "can't be read as YAML"),
        ("a: !!python/object/apply:os.system [true]\n", "can't be read as YAML"),
        ("model: {}\ntrain: {}\ndataset: {_target_: a.FinetuningDatasetConfig}\n", "is of FinetuningDatasetConfig"),
    ],
)
def test_what_is_no_configuration(text, rule, tmp_path):
    path = tmp_path / "run_config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rule):
        translate_configuration(read_configuration(path), name=path.name)

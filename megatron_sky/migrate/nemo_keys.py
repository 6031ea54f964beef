"""Keys of Megatron Bridge's and NeMo's configurations beside Megatron-LM's arguments.

Most keys are an argument's name with _ for -, and are told by the tables of `flags`. Here are those that are named
otherwise, that are no argument, or that say nothing because of another key's value.
"""

from megatron_sky.migrate.flags import named

FLAGS = {
    # key: Megatron-LM's argument where its name is another
    "virtual_pipeline_model_parallel_size": "num-virtual-stages-per-pipeline-rank",
    "layernorm_epsilon": "norm-epsilon",
    "seq_len_interpolation_factor": "rotary-seq-len-interpolation-factor",
    "rope_scaling": "use-rope-scaling",
    "bucket_size": "ddp-bucket-size",
    "fp8": "fp8-format",
    "fp8_param": "fp8-param-gather",
    "num_layers_in_first_pipeline_stage": "decoder-first-pipeline-num-layers",
    "num_layers_in_last_pipeline_stage": "decoder-last-pipeline-num-layers",
    "average_in_collective": "ddp-average-in-collective",
    "check_for_nan_in_grad": "check-for-nan-in-loss-and-grad",
    "path_to_cache": "data-cache-path",
    "use_nsys_profiler": "profile",
    "use_pytorch_profiler": "profile",
    "log_dir": "save",
}

ZEROS = ("hidden_dropout", "attention_dropout", "weight_decay", "clip_grad", "adam_beta1", "adam_beta2", "lr")
"""Keys whose 0 says something."""

NO_EFFECT = named(
    {
        "is reckoned from the others": """sequence_length lr_decay_steps lr_warmup_steps wd_incr_steps wsd_decay_steps
            split_matrix token_dtype_code data_parallel_size
            sequence_parallel_size params_dtype pipeline_dtype autocast_dtype output_layer_init_method fp32""",
        "the backend decides": """use_transformer_engine_full_layer_spec transformer_layer_spec parallel_output
            scatter_embedding_sequence_parallel dense_grouped_gemm logit_dtype use_arbitrary_attention_mask
            autocast_enabled gradient_as_bucket_view""",
        "megatron-core decides": """align_param_gather num_buckets pad_buckets_for_high_nccl_busbw
            reduce_scatter_with_fp32_accumulation param_name_patterns_for_fp32_local_accumulation
            gradient_reduce_div_fusion skip_sync_grad_norm_across_mp check_optimizer_step_success
            store_param_remainders pin_cpu_grads pin_cpu_params""",
        "the reader decides": """mmap_bin_files pin_memory persistent_workers create_attention_mask
            skip_getting_attention_mask_from_dataset drop_last dataloader_save dataloader_load""",
        "sampling is arithmetic, no index is built": """fast_cache_load defer_npy_index_mmap sequences_per_dataset
            skip_warmup""",
        "the tokenizer's file tells it": """tokenizer_type hf_tokenizer_kwargs sp_tokenizer_kwargs chat_template_path
            image_tag_type force_system_message use_tokenizer_vocab_size tokenizer rank""",
        "the saver decides": """storage_writers_per_rank async_write_results_mp_mode custom_manager_class
            ckpt_parallel_save ckpt_parallel_load ckpt_async_save ckpt_load_strictness save_last_n_optim_states
            save_optim_on_train_end""",
        "megatron-sky convert to-hf writes it": "also_save_hf_checkpoint hf_*",
        "is where the weights came from": "restore_modelopt_state",
        "metrics.jsonl, TensorBoard and Weights & Biases have the numbers": "mlflow_* comet_* skip_train_metrics_log",
        "ranks come from the launcher": "external_gpu_device_mapping use_decentralized_pg",
        "is Megatron-LM's own": "enable_megatron_core_experimental",
        "checks are the trainer's own (resilience)": "spiky_loss_factor",
        "is Lightning's own": """accelerator callbacks logger enable_checkpointing use_distributed_sampler
            limit_test_batches max_epochs replace_sampler_ddp benchmark strategy plugins num_sanity_val_steps
            name monitor mode filename save_last tensorboard_dir num_train_samples
            num_val_samples num_test_samples max_time use_datetime_version log_global_rank_0_only""",
    }
)

NO_COUNTERPART = {
    # key: (the value that turns nothing on, what is different with another)
    "softmax_type": ("vanilla", "another model"),
    "gtp_weight_remat_size": (1, "data parallelism is the distributed optimizer (ZeRO-1)"),
    "expert_gtp_weight_remat_size": (1, "data parallelism is the distributed optimizer (ZeRO-1)"),
    "mlp_chunks_for_prefill": (1, "another model"),
    "mlp_chunks_for_training": (1, "another model"),
    "weight_decay_incr_style": ("constant", "weight decay is constant"),
    "optimizer": ("adam", "another optimizer: AdamW it is"),
    "decoupled_weight_decay": (True, "another optimizer: AdamW it is, with decoupled weight decay"),
    "use_layer_wise_distributed_optimizer": (False, "data parallelism is the distributed optimizer (ZeRO-1)"),
    "main_grads_dtype": ("float32", "optimizer state is in fp32"),
    "main_params_dtype": ("float32", "optimizer state is in fp32"),
    "exp_avg_dtype": ("float32", "optimizer state is in fp32"),
    "exp_avg_sq_dtype": ("float32", "optimizer state is in fp32"),
    "grad_norm_skip_threshold": (float("inf"), "see resilience.on_spike for steps to skip"),
    "add_extra_token_to_sequence": (True, "another training: the label of a token is the one after it"),
    "drop_last_partial_validation_sequence": (True, "validation is of whole sequences"),
    "data_sharding": (True, "samples go to all ranks by their number"),
    "num_epochs": (None, "a run's length is train.tokens"),
    "max_steps": (None, "the schedule ends with schedule.decay_tokens"),
    "eval_context_parallel_size": (None, "validation has the layout of the training"),
    "inter_document_masking": (False, "see data.document_mask"),
    "varlen_mock_dataset_config_json": (None, "another training"),
    "varlen_sbhd_validation": (False, "another training"),
    "mock": (False, "megatron-sky quickstart makes a corpus"),
    "accumulate_grad_batches": (1, "micro batches follow from global_batch_size"),
    "fsdp": (None, "data parallelism is the distributed optimizer (ZeRO-1)"),
    "constant_steps": (0, "a rate that stays the least after the decay: set schedule.decay_tokens"),
    "peft": (None, "another training: adapters"),
    "mixed_precision": (None, "the name of a set of number formats: give precision its keys"),
}

GATES = (
    # (beginnings of keys, the key that they are of, the values with which they say nothing)
    ("moe_ expert_ ep_overlap_ overlap_moe_ overlap_dispatch_ use_grouped_gemm_", "num_moe_experts", (None, 0)),
    ("mtp_", "mtp_num_layers", (None, 0)),
    ("dsa_ linear_", "experimental_attention_variant", (None,)),
    ("mamba_ gdp_ use_mamba_", "is_hybrid_model", (None, False)),
    ("mhc_", "enable_mhc_connections", (None, False)),
    ("mup_", "use_mup", (None, False)),
    ("qk_clip_", "qk_clip", (None, False)),
    ("kitchen_", "use_kitchen", (None, False)),
    ("batch_invariant_b", "batch_invariant_mode", (None, False)),
    ("fp4_", "fp4", (None, False)),
    ("fp8_ tp_only_amax_red first_last_", "fp8", (None, False)),
    ("num_layers_at_", "first_last_layers_bf16", (None, False)),
    ("fsdp_ megatron_fsdp_ data_parallel_sharding_ outer_dp_ keep_fp8_", "use_megatron_fsdp", (None, False)),
    ("cpu_offloading_", "cpu_offloading", (None, False)),
    ("optimizer_offload_ overlap_cpu_", "optimizer_cpu_offload", (None, False)),
    (
        "min_offloaded_ activation_offload_ offload_modules delta_offload_",
        "fine_grained_activation_offloading",
        (None, False),
    ),
    ("rope_scaling_factor", "rope_scaling", (None, False)),
    ("loss_scale initial_loss_scale min_loss_scale hysteresis", "fp16", (None, False)),
    ("sgd_ muon_ lion_ soap_ adaptive_muon_", "optimizer", (None, "adam")),
    ("replication_", "replication", (None, False)),
    ("non_persistent_", "non_persistent_save_interval", (None, 0)),
    ("recompute_", "recompute_granularity", (None,)),
    ("wandb_", "wandb_project", (None, "")),
    ("lr_wsd_", "lr_decay_style", (None, "linear", "cosine", "constant", "inverse-square-root")),
    (
        "yarn_ mscale beta_fast beta_slow rotary_scaling_factor",
        "position_embedding_type",
        (None, "rope", "learned_absolute"),
    ),
)

SECTIONS = {
    # section: why nothing of it is read
    "env_vars": "the environment is the job's own",
    "ft": "see megatron-sky slurm submit: jobs requeue themselves",
    "straggler": "slow ranks are always told (resilience.straggler_ratio)",
    "nvrx_straggler": "slow ranks are always told (resilience.straggler_ratio)",
    "inprocess_restart": "the launcher starts the run again",
    "tensor_inspect": "is not logged",
    "optimizer_config_override_provider": "no weight decay on norms and biases, as its default has it",
    "resume": "a run folder is gone on with from its last whole checkpoint",
}

MODEL = {
    # key of the recipe: the key without which it is still to give
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_query_groups": "num_query_groups",
    "position_embedding": "position_embedding_type",
    "normalization": "normalization",
    "norm_epsilon": "layernorm_epsilon",
    "activation": "activation_func",
    "add_bias_linear": "add_bias_linear",
    "tie_embeddings": "share_embeddings_and_output_weights",
    "hidden_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "init_std": "init_method_std",
    "vocab_multiple": "make_vocab_size_divisible_by",
}

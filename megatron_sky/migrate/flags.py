"""Megatron-LM's arguments by what becomes of them, beside those that `recipe` maps: names only, without the dashes.

An argument that is in no table here is told as unknown: a newer one, or a model kind's own.
"""

import re


def named(reasons: dict[str, str]) -> dict[str, str]:
    """Name -> reason, of reasons with the names that they hold for."""
    return {name: reason for reason, names in reasons.items() for name in names.split()}


NO_EFFECT = {
    # name: why nothing is lost
    "use-mcore-models": "megatron-core's model is the only one",
    "use-legacy-models": "megatron-core's model is the only one",
    "transformer-impl": "model.backend chooses: te on GPUs that have Transformer Engine, else torch",
    "use-flash-attn": "attention takes the fastest kernel that the machine has",
    "attention-backend": "attention takes the fastest kernel that the machine has",
    "max-position-embeddings": "is model.seq_length",
    "encoder-seq-length": "is model.seq_length",
    "tokenizer-type": "the tokenizer's file tells its kind",
    "vocab-file": "the tokenizer is one file, tokenizer.path",
    "merge-file": "the tokenizer is one file, tokenizer.path",
    "tiktoken-pattern": "the tokenizer's file tells it",
    "tokenizer-hf-use-fast": "the tokenizer's file tells its kind",
    "distributed-backend": "nccl on GPUs, gloo on CPUs",
    "local-rank": "ranks come from the launcher",
    "no-async-tensor-model-parallel-allreduce": "megatron-core decides",
    "tp-comm-overlap-cfg": "Transformer Engine's own sizes are used",
    "dataloader-type": "samples are numbered; any layout and any restart reads the same ones",
    "data-cache-path": "sampling is arithmetic, no index is built",
    "no-mmap-bin-files": "the reader decides",
    "dataloader-fast-cache-load": "sampling is arithmetic, no index is built",
    "dataloader-defer-npy-index-mmap": "sampling is arithmetic, no index is built",
    "num-dataset-builder-threads": "sampling is arithmetic, no index is built",
    "no-create-attention-mask-in-dataloader": "masks are made where they are needed",
    "create-attention-mask-in-dataloader": "masks are made where they are needed",
    "log-throughput": "is always logged",
    "log-progress": "is always logged",
    "log-params-norm": "is not logged; the gradient norm is",
    "log-num-zeros-in-grad": "is not logged; the gradient norm is",
    "log-timers-to-tensorboard": "a step's time is logged; profile traces what it is made of",
    "log-memory-to-tensorboard": "is not logged; see profile.memory_snapshot",
    "log-validation-ppl-to-tensorboard": "the loss is logged; its exponential is the perplexity",
    "log-loss-scale-to-tensorboard": "an update that overflowed is told",
    "log-world-size-to-tensorboard": "is in run.json",
    "log-learning-rate-to-tensorboard": "is always logged",
    "log-batch-size-to-tensorboard": "is always logged",
    "log-straggler": "slow ranks are always told (resilience.straggler_ratio)",
    "timing-log-level": "a step's time is logged; profile traces what it is made of",
    "timing-log-option": "a step's time is logged; profile traces what it is made of",
    "no-barrier-with-level-1-timing": "a step's time is logged; profile traces what it is made of",
    "tensorboard-dir": "TensorBoard's files are in <run_dir>/tensorboard",
    "tensorboard-queue-size": "TensorBoard's files are in <run_dir>/tensorboard",
    "tensorboard-log-interval": "metrics.jsonl and TensorBoard have every step",
    "wandb-save-dir": "is the run folder",
    "wandb-entity": "is WANDB_ENTITY in the environment",
    "ckpt-format": "is torch_dist; any layout loads it",
    "use-dist-ckpt": "is torch_dist; any layout loads it",
    "dist-ckpt-format": "is torch_dist; any layout loads it",
    "dist-ckpt-strictness": "a checkpoint that lacks something is refused by name",
    "auto-detect-ckpt-format": "megatron-sky convert tells the format by itself",
    "ckpt-fully-parallel-save": "is always so",
    "no-ckpt-fully-parallel-save": "checkpoints are always written by all ranks",
    "ckpt-fully-parallel-load": "is always so",
    "ckpt-assume-constant-structure": "the saver decides",
    "use-persistent-ckpt-worker": "the saver decides",
    "async-save": "is the default (checkpoint.async_save)",
    "use-checkpoint-opt_param-scheduler": "the rate is computed from the recipe, never from a checkpoint",
    "override-opt_param-scheduler": "the rate is computed from the recipe, never from a checkpoint",
    "use-checkpoint-opt-param-scheduler": "the rate is computed from the recipe, never from a checkpoint",
    "override-opt-param-scheduler": "the rate is computed from the recipe, never from a checkpoint",
    "use-checkpoint-args": "the recipe is the description of the run",
    "use-mp-args-from-checkpoint-args": "any layout loads a checkpoint",
    "exit-signal-handler": "SIGTERM, SIGUSR1 and SIGUSR2 always save first",
    "exit-signal": "SIGTERM, SIGUSR1 and SIGUSR2 always save first",
    "exit-on-missing-checkpoint": "a run folder without checkpoints is a new run",
    "adlr-autoresume": "see megatron-sky slurm submit: jobs requeue themselves",
    "lr-wsd-decay-*": "is of the style WSD alone",
    "manual-gc": "Python's collector is left alone",
    "manual-gc-interval": "Python's collector is left alone",
    "no-manual-gc-eval": "Python's collector is left alone",
    "empty-unused-memory-level": "memory segments grow instead (slurm/train.sbatch)",
    "no-masked-softmax-fusion": "there is no such kernel",
    "no-bias-gelu-fusion": "the backend decides",
    "no-bias-swiglu-fusion": "the backend decides",
    "no-bias-dropout-fusion": "the backend decides",
    "no-persist-layer-norm": "the backend decides",
    "attention-softmax-in-fp32": "is always so",
    "no-query-key-layer-scaling": "is always so",
    "calculate-per-token-loss": "the loss always is the mean over a step's tokens",
    "check-for-nan-in-loss-and-grad": "is always checked (resilience.on_nonfinite)",
    "no-check-for-nan-in-loss-and-grad": "is always checked (resilience.on_nonfinite)",
    "check-for-spiky-loss": "see resilience.on_spike",
    "rerun-mode": "see resilience.rerun",
    "fp8-interval": "scales are updated every step",
    "fp8-wgrad": "is always so",
    "gradient-accumulation-fusion": "kernels.gradient_accumulation_fusion turns it on",
    "no-gradient-accumulation-fusion": "is off by default (kernels.gradient_accumulation_fusion)",
    "ddp-average-in-collective": "gradients are summed, then divided by the step's tokens",
    "no-align-param-gather": "megatron-core decides",
    "overlap-p2p-communication": "is the default (parallel.overlap_p2p)",
    "use-ring-exchange-p2p": "megatron-core decides",
    "cp-comm-type": "keys and values are gathered (torch backend) or sent in a ring (te)",
    "num-distributed-optimizer-instances": "is 1",
    "profile-step-end": "is profile.num_steps",
    "use-pytorch-profiler": "profile writes the trace",
    "record-memory-history": "see profile.memory_snapshot",
    "config-logger-dir": "the resolved recipe is <run_dir>/config.yaml",
    "enable-one-logger": "is NVIDIA's own service",
    "no-one-logger": "is NVIDIA's own service",
    "one-logger-project": "is NVIDIA's own service",
    "one-logger-run-name": "is NVIDIA's own service",
    "lazy-mpu-init": "is Megatron-LM's own",
    "use-cpu-initialization": "initial weights are drawn by global name and equal in every layout",
    "data-parallel-random-init": "initial weights are drawn by global name and equal in every layout",
    "skip-train": "megatron-sky eval evaluates a checkpoint",
    "train-sync-interval": "ranks agree once a step",
    "no-load-optim": "checkpoint.init_from loads weights alone",
    "no-load-rng": "checkpoint.init_from loads weights alone",
    "no-save-rng": "random numbers follow from seed and step, nothing is saved",
} | named(
    {
        "the backend decides": """no-rope-fusion apply-rope-fusion masked-softmax-fusion bias-activation-fusion
            bias-dropout-fusion persist-layer-norm memory-efficient-layer-norm fused-residual-rmsnorm
            fused-single-qkv-rope cross-entropy-fusion-impl use-te-activation-func flash-attention-version
            use-transformer-engine-op-fuser disable-jit-fuser use-grouped-gemm-for-dense-mlp mla-down-proj-fusion
            no-gradient-reduce-div-fusion use-fused-weighted-squared-relu disable-bf16-reduced-precision-matmul
            disable-parameter-transpose-cache keep-fp8-transpose-cache onnx-safe legacy-tokenizer""",
        "megatron-core decides": """apply-query-key-layer-scaling async-tensor-model-parallel-allreduce
            batch-p2p-* overlap-p2p-comm overlap-p2p-* deallocate-pipeline-outputs
            defer-embedding-wgrad-compute wgrad-deferral-limit delay-wgrad-compute align-grad-reduce
            no-align-grad-reduce no-scatter-gather-tensors-in-pipeline microbatch-group-size-*
            variable-seq-lengths clone-scatter-output-in-embedding ddp-num-buckets
            ddp-pad-buckets-for-high-nccl-busbw ddp-reduce-scatter-with-fp32-accumulation
            suggested-communication-unit-size create-all-gather-group reuse-grad-buf-for-mxfp8-param-ag
            tp-only-amax-red no-use-layer-wise-param-layout hierarchical-context-parallel-sizes
            tensor-parallel-num-weight-shards""",
        "only how ranks exchange tensors": """disable-gloo-process-groups use-gloo-process-groups use-nccl-ub
            use-sharp sharp-enabled-group nccl-* high-priority-* disable-symmetric-registration symmetric-ar-type
            pipeline-model-parallel-comm-backend use-tp-pp-dp-mapping tp-comm-* fake-process-group""",
        "random numbers follow from seed and step": """te-rng-tracker use-te-rng-tracker
            use-same-sampling-seed-across-dp-ranks""",
        "is a graph for each layer (kernels.cuda_graphs)": """external-cuda-graph optimizer-cuda-graph
            decode-only-cuda-graphs cuda-graph-*""",
        "the tokenizer's file tells it": """tokenizer-* tiktoken-* vocab-extra-ids special-tokens
            trust-remote-code use-tokenizer-model-from-checkpoint-args save-tokenizer-assets use-gigatoken
            metadata-path null-tokenizer-* pad-vocab-size padded-vocab-size chat-template""",
        "the saver decides": """async-strategy async-ckpt-* ckpt-fully-parallel-* ckpt-pg-tensors-cache-*
            ckpt-drop-redundant-extra-state ckpt-load-validate-sharding-integrity dist-ckpt-* distrib-optim-*
            fully-parallel-* stream-ckpt-dequant verify-integrity strict-fsdp-dtensor-load
            load-main-params-from-ckpt""",
        "megatron-sky convert does it": "ckpt-convert-* hetereogenous-dist-checkpoint bert-load ict-load",
        "a recipe says what is kept and gone on with": """load-optim load-rng save-optim save-rng
            save-config-filepath override-ckpt-iteration""",
        "is not logged": """log-device-memory-used log-energy log-max-attention-logit log-memory-interval
            log-l2-norm-grad-to-tensorboard log-runtime-to-tensorboard log-throughput-to-tensorboard memory-keys
            throughput-window-size runtime-time-unit timers barrier-with-L1-time logging-level filter-warnings
            modules-to-filter set-level-for-all-loggers indexer-log-interval otel-* app-tag-run-* one-logger-async
            save-activations-interval save-dgrads-interval save-params-interval save-tokens-per-expert-interval
            save-wgrads-interval dump-param-to-param-group-map result-rejected-tracker-filename test-mode""",
        "slow ranks are always told (resilience.straggler_ratio)": "straggler-* disable-straggler-on-startup",
        "see megatron-sky slurm submit: jobs requeue themselves": "adlr-autoresume-interval enable-ft-package "
        "calc-ft-timeouts ft-num-warmup-iters run-workload-inspector-server",
        "a rank that hangs is told with every thread's place": "flight-recorder-* distributed-timeout-seconds-*",
        "profile writes the trace": """nvtx-ranges pytorch-profiler-* record-shapes use-nsys-profiler
            memory-snapshot-path""",
        "signals always save first": "exit-signal-handler-*",
        "checks are the trainer's own (resilience)": """check-for-large-grads check-for-nan-in-loss
            check-weight-hash-across-dp-replicas-interval gpu-sniff-test-interval error-injection-* fault-injector-*""",
        "is Megatron-LM's own": """enable-msc disable-msc no-initialization enable-experimental
            init-model-with-meta-device
            perform-initialization params-dtype pipeline-dtype autocast-dtype enable-autocast grad-scale-func
            no-sync-func grad-sync-func param-sync-func finalize-model-grads-func timers init-method
            output-layer-init-method embedding-init-method manual-gc-eval disable-chunked-prefill
            use-legacy-static-engine use-torch-optimizer-for-cpu-offload no-pin-cpu-grads no-pin-cpu-params
            max-tokens-to-oom use-mamba-mem-eff-path cpu-offloading-context""",
        "sampling is arithmetic, no index is built": "object-storage-cache-path",
        "is of rotary positions alone": """use-rope-scaling rope-scaling-factor rotary-base rotary-percent
            rotary-seq-len-interpolation-factor""",
        "is of --group-query-attention alone": "num-query-groups",
        "is of --fp16 alone": "initial-loss-scale",
        "is of --profile alone": "profile-ranks profile-step-start",
        "is of --wandb-project alone": "wandb-exp-name",
        "is of --same-order alone": "mid-level-dataset-surplus",
        "documents hold no padding": "allow-ambiguous-pad-tokens",
        "megatron-sky generate takes a checkpoint": "inference-*",
    }
)

NO_COUNTERPART = {
    # name or prefix*: what is different without it
    "apply-layernorm-1p": "norm weights are kept around 1, not around 0: the same up to rounding",
    "rotary-interleaved": "another model: positions rotate halves",
    "squared-relu": "another model",
    "openai-gelu": "another model: GELU is the tanh form",
    "quick-geglu": "another model",
    "qk-layernorm": "another model",
    "apply-residual-connection-post-layernorm": "another model",
    "add-qkv-bias": "another model",
    "window-size": "another model",
    "no-position-embedding": "another model",
    "num-experts": "another model: mixture of experts",
    "moe-*": "another model: mixture of experts",
    "expert-*": "another model: mixture of experts",
    "multi-latent-attention": "another model",
    "q-lora-rank": "another model",
    "kv-lora-rank": "another model",
    "mtp-*": "another training: multi-token prediction",
    "hybrid-*": "another model",
    "mamba-*": "another model",
    "spec": "another model",
    "init-method-xavier-uniform": "other initial weights: a normal distribution is drawn",
    "optimizer": "another optimizer: AdamW it is",
    "sgd-momentum": "another optimizer: AdamW it is",
    "muon-*": "another optimizer: AdamW it is",
    "decoupled-lr": "one learning rate for all weights",
    "decoupled-min-lr": "one learning rate for all weights",
    "start-weight-decay": "weight decay is constant",
    "end-weight-decay": "weight decay is constant",
    "weight-decay-incr-style": "weight decay is constant",
    "head-lr-mult": "one learning rate for all weights",
    "loss-scale": "fp16 scales dynamically",
    "min-loss-scale": "megatron-core's own value",
    "loss-scale-window": "megatron-core's own value",
    "hysteresis": "megatron-core's own value",
    "fp16-lm-cross-entropy": "the cross-entropy is in fp32",
    "split": "a file is one set: give validation.sets files of their own, or --same-order",
    "mock-data": "megatron-sky quickstart makes a corpus",
    "test-data-path": "megatron-sky eval evaluates a checkpoint",
    "reset-position-ids": "goes only together with reset-attention-mask (data.document_mask)",
    "reset-attention-mask": "goes only together with reset-position-ids (data.document_mask)",
    "fim-*": "another training: fill in the middle",
    "sft": "another training: tuning on chats",
    "recompute-method": "layers are recomputed in equal blocks (uniform)",
    "recompute-modules": "selective recomputation is of the attention core",
    "distribute-saved-activations": "recomputed layers keep whole inputs",
    "cpu-offloading": "activations stay on the device",
    "cpu-offloading-num-layers": "activations stay on the device",
    "optimizer-cpu-offload": "optimizer state stays on the device",
    "use-precision-aware-optimizer": "optimizer state is in fp32",
    "use-torch-fsdp2": "data parallelism is the distributed optimizer (ZeRO-1)",
    "use-megatron-fsdp": "data parallelism is the distributed optimizer (ZeRO-1)",
    "use-custom-fsdp": "data parallelism is the distributed optimizer (ZeRO-1)",
    "data-parallel-sharding-strategy": "data parallelism is the distributed optimizer (ZeRO-1)",
    "decoder-first-pipeline-num-layers": "pipeline stages hold equally many layers",
    "decoder-last-pipeline-num-layers": "pipeline stages hold equally many layers",
    "account-for-embedding-in-pipeline-split": "pipeline stages hold equally many layers",
    "account-for-loss-in-pipeline-split": "pipeline stages hold equally many layers",
    "pipeline-model-parallel-layout": "pipeline stages hold equally many layers",
    "overlap-param-gather-with-optimizer-step": "parameters are gathered in the forward pass",
    "exit-interval": "see train.max_steps for the step to stop after",
    "iterations-to-skip": "see resilience.on_spike for steps to skip",
    "persistent-save-interval": "every checkpoint stays until checkpoint.keep_last deletes it",
    "non-persistent-save-interval": "every checkpoint stays until checkpoint.keep_last deletes it",
    "inprocess-restart": "the launcher starts the run again",
    "fp4-format": "no 4-bit products",
    "fp8": "is an older name of fp8-format",
    "fp8-margin": "scales have no margin",
    "fp8-dot-product-attention": "the attention core keeps dtype",
    "ckpt-step": "a run goes on from its last whole checkpoint",
    "rl-*": "another training",
    "grpo-*": "another training",
    "vision-*": "another model",
    "yaml-cfg": "give the arguments themselves",
} | named(
    {
        "another model": """activation-func* attention-output-gate glu-linear-offset gated-linear-unit
            layernorm-zero-centered-gamma apply-wd-to-qk-layernorm fp32-residual-connection
            experimental-attention-variant* dsa-* linear-attention-freq linear-key-head-dim linear-value-head-dim
            linear-num-* linear-conv-* heterogeneous-* is-hybrid-model mhc-* enable-mhc-connections hash-*
            engram-* mrope-section mscale mscale-all-dim qk-l2-norm qk-clip* qk-head-dim qk-pos-emb-head-dim
            v-head-dim rope-type rotary-scaling-factor no-rope-freq relative-attention-* softmax-* window-attn-*
            yarn-* no-yarn-* output-logit-dtype cache-mla-latents gdp-* use-mup mup-* embedding-init-method-std
            num-moe-experts mlp-chunks-* output-bert-embeddings spec num-layers-in-* add-bias-linear""",
        "another model: mixture of experts": """overlap-moe-* ep-overlap-* overlap-dispatch-* delay-offload-*
            use-grouped-gemm-for-shared-expert""",
        "another model: BERT, T5, retrieval or vision": """bert-* biencoder-* block-data-path dino-*
            embedding-path evidence-data-path ict-head-size img-* indexer-batch-size iter-per-epoch
            classes-fraction data-per-class-fraction mask-* num-channels num-classes patch-dim query-in-block-prob
            retriever-* retro-* sample-rate short-seq-prob swin-* titles-data-path use-one-sent-docs
            decoder-num-layers encoder-num-layers decoder-seq-length""",
        "another optimizer: AdamW it is": "lion-* soap-* emerging-* adaptive-muon-* dist-muon",
        "optimizer state is in fp32": "exp-avg-dtype exp-avg-sq-dtype main-grads-dtype main-params-dtype",
        "optimizer state stays on the device": "optimizer-offload-fraction overlap-cpu-optimizer-d2h-h2d",
        "activations stay on the device": """fine-grained-* min-offloaded-tensor-size activation-offload-fraction
            delta-offload-* offload-modules cpu-offloading-*""",
        "data parallelism is the distributed optimizer (ZeRO-1)": """fsdp-* megatron-fsdp-* torch-fsdp2-* gtp-*
            outer-dp-sharding-strategy enable-full-sharding-in-hsdp ddp-param-name-patterns-* replication
            replication-*""",
        "8-bit products are of the linears alone (precision.fp8)": """fp8-* fp4 fp4-* te-precision-config-file
            quant-recipe kitchen-* use-kitchen*""",
        "is precision.fp8.first_last_layers_bf16, one layer at each end": "num-layers-at-start-in-bf16 "
        "num-layers-at-end-in-bf16",
        "weights are the same on all ranks, bit for bit": "batch-invariant-*",
        "validation reads the files of validation.sets": """full-validation multiple-validation-sets
            start-eval-at-iter eval-global-batch-size eval-micro-batch-size validation-set-names""",
        "another training": """langrl-* perform-rl-step refit-method logits-load-* logits-save-*
            num-speculative-tokens freeze-all-layers phase-transition-iterations sft-* distill-*
            use-inference-optimized-layers enable-chunked-prefill flash-decode dataloader-inter-document-masking
            per-dataset-sequences-path max-seqlen-per-dp-cp-rank hybrid-context-parallel dynamic-context-parallel""",
        "weight decay is constant, none on norms and biases": "wd-incr-steps no-weight-decay-cond-type",
        "every checkpoint stays until checkpoint.keep_last deletes it": "non-persistent-*",
        "the launcher starts the run again": "inprocess-*",
        "is an old name that newer versions refuse": """batch-size warmup model-parallel-size
            checkpoint-activations lr-decay-steps lr-warmup-steps wsd-decay-steps
            virtual-pipeline-model-parallel-size""",
        "a batch must divide by micro batch x data-parallel size": "decrease-batch-size-if-needed",
        "samples go to all ranks by their number": "no-data-sharding",
        "activations are recomputed alike in all micro batches": "num-microbatches-with-partial-*",
    }
)


def find(table: dict[str, str], name: str) -> str | None:
    """The table's word on an argument, by its name or by a prefix; what turns one off has that one's."""
    if name in table:
        return table[name]
    family = next((why for key, why in table.items() if key.endswith("*") and name.startswith(key[:-1])), None)
    turned_off = re.match("no-|disable-", name)
    return find(table, name[turned_off.end() :]) if family is None and turned_off else family

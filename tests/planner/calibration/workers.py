"""What ranks do in the tests of calibration."""


def run_each_twice(info, dtypes: tuple[str, ...]) -> list[str]:
    from megatron_sky.planner.calibration.operators import Operators
    from megatron_sky.planner.calibration.sizes import sizes_of

    kinds = []
    with open_ranks(info) as context:
        for dtype in dtypes:
            operators = Operators(context, dtype)
            for kind in ("product_forward", "attention_forward", "gated_layer_forward", "plain_layer_forward", "loss"):
                kinds += _run_twice(operators.prepare(kind, sizes_of(kind, False)[0]))
            kinds += _run_twice(operators.prepare("embedding", sizes_of("embedding", False)[0]))
            kinds += _run_twice(operators.prepare("gradients", (1 << 16,)))
    return kinds


def run_larger_than_pool(info) -> list[str]:
    """Operators whose operands the memory of cold weights is too small for."""
    from unittest import mock

    from megatron_sky.planner.calibration import operators as measured

    with open_ranks(info) as context, mock.patch.object(measured, "_COLD_BYTES", 1 << 10):
        operators = measured.Operators(context, "fp32")
        return _run_twice(operators.prepare("product_forward", (64, 64, 64))) + _run_twice(
            operators.prepare("attention_forward", (1, 64, 64, 2, 32))
        )


def _run_twice(ready: list) -> list[str]:
    for _ in range(2):
        for operator in ready:
            operator.run()
    return [operator.kind for operator in ready]


def measure_few_sizes(info) -> dict:
    from unittest import mock

    from megatron_sky.planner.calibration import rank as measuring
    from megatron_sky.planner.calibration.sizes import sizes_of

    def few(kind: str, on_gpu: bool) -> list:
        return [(1 << 16,), (1 << 17,)] if kind == "gradients" else list(sizes_of(kind, on_gpu)[:2])

    work = measuring.Work(info.world_size, info.rank, "", ("fp32",), 0.0)
    with (
        open_ranks(info) as context,
        mock.patch.object(measuring, "sizes_of", few),
        mock.patch.object(measuring, "bytes_of_collectives", lambda on_gpu: (1 << 10, 1 << 16)),
        mock.patch.object(measuring, "_SLICE_SECONDS", 0.0),
    ):
        return measuring.measure_rounds(context, work, lambda message: None)


def count_runs(info, slice_seconds: tuple[float, ...]) -> int:
    """How often a step that waits for the other rank's is run, where each rank thinks of another time as enough."""
    from unittest import mock

    from megatron_sky.planner.calibration import rank as measuring
    from megatron_sky.planner.calibration.operators import Operator

    runs = []
    own = mock.patch.object(measuring, "_SLICE_SECONDS", slice_seconds[info.rank])
    with open_ranks(info) as context, own:
        step = Operator("step", (1, 1), lambda: runs.append(context.gather_objects(info.rank)))
        measuring._time(context, [step])
    return len(runs)


def open_ranks(info):
    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context

    return open_context(ParallelConfig(), info)

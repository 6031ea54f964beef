"""Kernels of Transformer Engine's extension but attention's: each gives what its own gives, and takes as much memory.

Source: `pytorch/csrc/extensions/` of Transformer Engine 2.8 to 2.20. Arguments have the names and places that they
have there; what the extension calculates is left out.
"""

import math

import torch

from megatron_sky.distributed.meta_device import Watch
from megatron_sky.distributed.te_stand_in import quantized
from megatron_sky.distributed.te_stand_in.names import DType

_FORMATS = {
    DType.kByte: torch.uint8,
    DType.kInt32: torch.int32,
    DType.kFloat32: torch.float32,
    DType.kFloat16: torch.float16,
    DType.kBFloat16: torch.bfloat16,
}


class Kernels:
    """`any_direction`: see `quantized`. Every public method is a function of the extension."""

    def __init__(self, watch: Watch, any_direction: bool):
        self._watch, self._any_direction = watch, any_direction

    def quantize(self, tensor, quantizer, output=None, noop=None):
        if output is None:
            output = self._empty(quantizer, tensor.shape, tensor.dtype)
        else:
            quantized.fill(output, quantizer, self._any_direction)
        self._share_amax(quantizer)
        return output

    def dequantize(self, input, otype):
        return torch.empty(quantized.shape_of(input), dtype=_FORMATS[DType(int(otype))], device="meta")

    def create_empty_quantized_tensor(self, quantizer, shape, dtype, device, pin_memory):
        return self._empty(quantizer, shape, dtype)

    def bgrad_quantize(self, input, quantizer):
        bias = input.new_empty(input.shape[-1])
        return [bias, input.contiguous() if quantizer is None else self.quantize(input, quantizer)]

    def generic_gemm(
        self,
        A,
        transA,
        B,
        transB,
        D,
        quantizer,
        output_dtype,
        bias,
        bias_type,
        gelu,
        gelu_in,
        grad,
        workspace,
        workspace_size,
        accumulate,
        use_split_accumulator,
        comm_overlap=None,
        comm_type=None,
        extra_output=None,
        bulk_overlap=False,
        alpha=1.0,
        beta=None,
    ):
        """Column-major as cuBLAS: the result is `[*rows of B, columns of A]`, of `[n, k]` and `[m, k]` for transA."""
        workspace.detach()  # kept in a cache, where it is met again
        if gelu:
            raise quantized.UnknownToRehearsal("generic_gemm with gelu: no layer of this program has it")
        a, b = quantized.shape_of(A), quantized.shape_of(B)
        k = a[-1] if transA else math.prod(a[:-1])
        inner = math.prod(b[:-1]) if transB else b[-1]
        if k != inner:
            raise ValueError(f"generic_gemm: {list(a)} and {list(b)} do not fit (transA={transA}, transB={transB})")
        columns = math.prod(a[:-1]) if transA else a[-1]
        shape = ((b[-1],) if transB else b[:-1]) + (columns,)
        dtype = _FORMATS[DType(int(output_dtype))] if output_dtype is not None else A.dtype
        narrow = quantized.is_quantized(A) or quantized.is_quantized(B)
        name = "_scaled_mm" if narrow else "mm"
        operands = str(_format_of(A)) if narrow else str(A.dtype)
        self._watch.computed(name, (math.prod(shape[:-1]), columns, k), operands.removeprefix("torch."), passes=1)
        if D is None:
            wide = torch.empty(shape, dtype=dtype, device="meta")
            D = wide if quantizer is None else self.quantize(wide, quantizer)
        elif quantized.shape_of(D) != shape:
            raise ValueError(f"generic_gemm: the result has the shape {list(shape)}, not {list(quantized.shape_of(D))}")
        if comm_overlap is not None:
            comm_overlap.moved(comm_type)
        bias_grad = torch.empty(b[-1], dtype=dtype, device="meta") if bias is not None and grad else None
        return [D, bias_grad, None, extra_output]

    def rmsnorm_fwd(self, input, weight, eps, ln_out, quantizer, otype, sm_margin, zero_centered_gamma):
        scale = self._a_number_a_row(input)
        return [self._normed(input, ln_out, quantizer, otype), None, scale]

    def rmsnorm_bwd(self, dz, x, rsigma, gamma, sm_margin, zero_centered_gamma):
        return [torch.empty_like(x.contiguous()), torch.empty_like(gamma)]

    def layernorm_fwd(self, input, weight, bias, eps, ln_out, quantizer, otype, sm_margin, zero_centered_gamma):
        mean, scale = self._a_number_a_row(input), self._a_number_a_row(input)
        return [self._normed(input, ln_out, quantizer, otype), mean, scale]

    def layernorm_bwd(self, dz, x, mu, rsigma, gamma, sm_margin, zero_centered_gamma):
        return [torch.empty_like(x.contiguous()), torch.empty_like(gamma), torch.empty_like(gamma)]

    def fused_rope_forward(self, input, freqs, *places):
        return torch.empty(input.shape, dtype=input.dtype, device="meta")

    def fused_rope_backward(self, output_grads, freqs, *places):
        return torch.empty(output_grads.shape, dtype=output_grads.dtype, device="meta")

    def scaled_upper_triang_masked_softmax_forward(self, input, scale_factor):
        return torch.empty_like(input)

    def scaled_upper_triang_masked_softmax_backward(self, output_grads, softmax_results, scale_factor):
        return output_grads.contiguous()  # written over

    def scaled_aligned_causal_masked_softmax_forward(self, input, scale_factor):
        return torch.empty_like(input)

    def scaled_aligned_causal_masked_softmax_backward(self, output_grads, softmax_results, scale_factor):
        return output_grads.contiguous()

    def scaled_softmax_forward(self, input, scale_factor):
        return torch.empty_like(input)

    def scaled_softmax_backward(self, output_grads, softmax_results, scale_factor):
        return output_grads.contiguous()

    def scaled_masked_softmax_forward(self, input, mask, scale_factor):
        return torch.empty_like(input)

    def scaled_masked_softmax_backward(self, output_grads, softmax_results, scale_factor):
        return output_grads.contiguous()

    def fp8_transpose(self, input, dtype, *, out):
        rows, columns = math.prod(input.shape[:-1]), input.shape[-1]
        return torch.empty((columns, rows), dtype=torch.uint8, device="meta") if out is None else out

    def swap_first_dims(self, tensor, *, out):
        first, second, *rest = tensor.shape
        return tensor.new_empty((second, first, *rest)) if out is None else out

    def multi_tensor_l2norm(self, chunk_size, noop_flag, tensor_lists, per_tensor=False):
        numbers = len(tensor_lists[0]) if per_tensor else 0
        return torch.empty(1, device="meta"), torch.empty(numbers, device="meta")

    def multi_tensor_unscale_l2norm(self, chunk_size, noop_flag, tensor_lists, inv_scale, per_tensor=False):
        return self.multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor)

    def _empty(self, quantizer, shape, dtype):
        return quantized.empty(quantizer, shape, dtype, self._any_direction)

    def _normed(self, input, out, quantizer, otype):
        """Only a delayed scale is known before the norm: for the others its result is there in full first."""
        dtype = _FORMATS[DType(int(otype))]
        if quantizer is None:
            return torch.empty(input.shape, dtype=dtype, device="meta") if out is None else out
        if quantized.kind_of(quantizer) == "Float8Quantizer":
            return self._empty(quantizer, input.shape, dtype) if out is None else out
        wide = torch.empty(input.shape, dtype=dtype, device="meta")
        return self.quantize(wide, quantizer) if out is None else out

    def _share_amax(self, quantizer) -> None:
        """A tensor's own scale is taken of its parts on all tensor-parallel ranks."""
        if getattr(quantizer, "with_amax_reduction", False):
            group = quantizer._canonicalized_amax_reduction_group()
            amax = getattr(quantizer, "amax", None)
            self._watch.communicated("all_reduce", torch.empty(1, device="meta") if amax is None else amax, group, ())

    @staticmethod
    def _a_number_a_row(input):
        return torch.empty(math.prod(input.shape[:-1]), dtype=torch.float32, device="meta")


def _format_of(tensor) -> str:
    """torch's name of an 8-bit tensor's numbers; products of two kinds have the first's."""
    kinds = {DType.kFloat8E4M3: "float8_e4m3fn", DType.kFloat8E5M2: "float8_e5m2"}
    return kinds[DType(int(tensor._fp8_dtype))] if quantized.is_quantized(tensor) else str(tensor.dtype)


WRITES_IN_PLACE = (
    "fused_amax_and_scale_update_after_reduction",
    "compute_amax",
    "fp8_block_scaling_compute_partial_amax",
    "fp8_block_scaling_partial_cast",
    "mxfp8_scaling_compute_partial_amax",
    "mxfp8_scaling_partial_cast",
    "multi_tensor_scale",
    "multi_tensor_scale_tensor",
    "multi_tensor_adam",
    "multi_tensor_adam_param_remainder",
    "multi_tensor_adam_fp8",
    "multi_tensor_adam_capturable",
    "multi_tensor_adam_capturable_master",
    "multi_tensor_compute_scale_and_scale_inv",
    "multi_tensor_compute_scale_inv_e8m0",
    "bulk_overlap_ag_with_external_gemm",
)
"""Kernels that write into what they are given, and take and give nothing."""

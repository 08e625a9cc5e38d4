// torch.autocast("npu"): which operators compute in the low precision, in float32, or in the widest type of their
// operands.
#pragma once

#include "tensors.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

#include <algorithm>

// From ATen/autocast_mode.h, which includes every operator there is and would double the time to compile this.
namespace at::autocast {
TORCH_API at::ScalarType get_autocast_dtype(at::DeviceType device_type);
TORCH_API Tensor cached_cast(at::ScalarType to_type, const Tensor &arg, c10::DeviceType device_type);
} // namespace at::autocast

namespace fake_npu {

constexpr const char *LOW_PRECISION[] = {
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_tbc",
    "conv_transpose1d",
    "conv_transpose2d.input",
    "conv_transpose3d.input",
    "convolution",
    "prelu",
    "addmm",
    "addmv",
    "addr",
    "matmul",
    "einsum",
    "mm",
    "mv",
    "linear",
    "addbmm",
    "baddbmm",
    "bmm",
    "linalg_vecdot",
    "chain_matmul",
    "linalg_multi_dot",
    "scaled_dot_product_attention",
};
constexpr const char *FLOAT32[] = {
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "softplus",
    "layer_norm",
    "native_layer_norm",
    "group_norm",
    "cosine_similarity",
    "nll_loss",
    "kl_div",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "binary_cross_entropy_with_logits",
    "dist",
    "cdist",
    "renorm",
    "logsumexp",
    "prod",
    "prod.dim_int",
    "softmax.int",
    "log_softmax.int",
    "cumprod",
    "cumsum",
    "linalg_vector_norm",
    "linalg_matrix_norm",
    "sum",
    "sum.dim_IntList",
    "norm.Scalar",
    "norm.ScalarOpt_dim",
};
constexpr const char *WIDEST[] = {
    "addcdiv",      "addcmul",   "atan2",     "bilinear",    "cross", "dot",   "vdot",
    "grid_sampler", "index_put", "tensordot", "scatter_add", "cat",   "stack",
};

inline bool can_be_cast(const Tensor &tensor) { return on_npu(tensor) && tensor.is_floating_point(); }

// Calls the operator again, without autocast, with its floating-point tensors cast.
inline void call_with(at::ScalarType dtype, const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    c10::impl::ExcludeDispatchKeyGuard once(c10::DispatchKey::AutocastPrivateUse1);
    const auto cast = [dtype](const Tensor &tensor) {
        return can_be_cast(tensor) ? at::autocast::cached_cast(dtype, tensor, NPU) : tensor;
    };
    const size_t count = op.schema().arguments().size();
    for (size_t i = stack->size() - count; i < stack->size(); ++i) {
        c10::IValue &value = (*stack)[i];
        if (value.isTensor()) {
            value = cast(value.toTensor());
        } else if (value.isTensorList()) {
            c10::List<Tensor> list;
            for (const Tensor &tensor : value.toTensorVector()) {
                list.push_back(cast(tensor));
            }
            value = std::move(list);
        }
    }
    op.callBoxed(stack);
}

inline void in_low_precision(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    call_with(at::autocast::get_autocast_dtype(NPU), op, stack);
}

inline void in_float32(const c10::OperatorHandle &op, torch::jit::Stack *stack) { call_with(at::kFloat, op, stack); }

inline void in_widest(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    const auto is_float32 = [](const Tensor &tensor) {
        return can_be_cast(tensor) && tensor.scalar_type() == at::kFloat;
    };
    const size_t count = op.schema().arguments().size();
    const bool any = std::any_of(stack->end() - count, stack->end(), [&](const c10::IValue &value) {
        if (value.isTensorList()) {
            const auto list = value.toTensorVector();
            return std::any_of(list.begin(), list.end(), is_float32);
        }
        return value.isTensor() && is_float32(value.toTensor());
    });
    call_with(any ? at::kFloat : at::autocast::get_autocast_dtype(NPU), op, stack);
}

} // namespace fake_npu

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) { library.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, library) {
    for (const char *name : fake_npu::LOW_PRECISION) {
        library.impl(name, torch::CppFunction::makeFromBoxedFunction<&fake_npu::in_low_precision>());
    }
    for (const char *name : fake_npu::FLOAT32) {
        library.impl(name, torch::CppFunction::makeFromBoxedFunction<&fake_npu::in_float32>());
    }
    for (const char *name : fake_npu::WIDEST) {
        library.impl(name, torch::CppFunction::makeFromBoxedFunction<&fake_npu::in_widest>());
    }
}

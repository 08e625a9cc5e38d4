// npu tensors and the CPU tensors that stand in for them, on the same memory.
#pragma once

#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>

#include <limits>
#include <optional>

namespace fake_npu {

using at::Tensor;

inline bool on_npu(const Tensor &tensor) { return tensor.defined() && tensor.device().type() == NPU; }

// What a dtype becomes on the device.
inline at::ScalarType device_dtype(at::ScalarType dtype) {
    if (dtype != at::kDouble) {
        return dtype;
    }
    TORCH_WARN("the npu has no float64: the tensor becomes float32");
    return at::kFloat;
}

inline void check_memory_format(std::optional<at::MemoryFormat> format) {
    const auto asked = format.value_or(at::MemoryFormat::Contiguous);
    TORCH_CHECK(asked == at::MemoryFormat::Contiguous || asked == at::MemoryFormat::Preserve,
                "Only c10::MemoryFormat::Contiguous is supported on the npu, not ", asked);
}

inline Tensor new_tensor(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype,
                         c10::DeviceIndex device) {
    OnDevice guard(device);
    const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
    return Tensor(at::detail::empty_strided_generic(sizes, strides, &DeviceMemory::get(), keys, device_dtype(dtype)));
}

inline Tensor cpu_tensor_on(const Tensor &tensor, c10::Storage storage) {
    auto result = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
                                                           c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    result._set_conj(tensor.is_conj());
    result._set_neg(tensor.is_neg());
    return result;
}

// A CPU tensor on the memory of an npu tensor, or of a pinned one: it keeps the memory, but not the tensor, alive. An
// operation that must resize it gives it other memory.
inline Tensor stand_in(const Tensor &tensor) {
    const auto &storage = tensor.storage();
    const BlockPtr block = block_of(storage.data());
    c10::DataPtr data;
    if (block) {
        data = {storage.mutable_data(), new BlockPtr(block),
                [](void *context) { delete static_cast<BlockPtr *>(context); }, c10::Device(at::kCPU)};
    } else {
        data = c10::GetCPUAllocator()->allocate(storage.nbytes()); // an empty tensor
    }
    c10::Storage same(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetCPUAllocator(),
                      /*resizable=*/true);
    return cpu_tensor_on(tensor, std::move(same));
}

// An npu tensor on the memory of `base`, of the shape of a CPU tensor on `base`'s stand-in.
inline Tensor view_of(const Tensor &base, const Tensor &shape) {
    auto result = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()),
                                                           base.key_set(), shape.dtype());
    result.unsafeGetTensorImpl()->set_sizes_and_strides(shape.sizes(), shape.strides(), shape.storage_offset());
    result._set_conj(shape.is_conj());
    result._set_neg(shape.is_neg());
    return result;
}

// use(), of memory.h, for the bytes that a tensor spans. (Interleaved slices of one tensor count as overlapping.)
inline bool use(const Tensor &tensor, bool writes, Stream &stream, Position position) {
    const BlockPtr block = tensor.numel() ? block_of(tensor.storage().data()) : nullptr;
    if (!block) {
        return true;
    }
    const size_t before = static_cast<const char *>(tensor.storage().data()) - block->data;
    const size_t begin = before + tensor.storage_offset() * tensor.itemsize();
    const size_t end = before + at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize(),
                                                                 tensor.storage_offset());
    return use(*block, begin, end, writes, stream, position);
}

// Copies between stand-ins: below autograd, which has seen to the tensors that they stand for.
inline void assign(const Tensor &target, const Tensor &source) {
    at::AutoDispatchBelowADInplaceOrView guard;
    target.copy_(source);
}

inline Tensor copy_of(const Tensor &source) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return source.clone();
}

// Spoils what came out of a collision: on a real device it might be anything. (-1, in unsigned types, is their largest
// number.)
inline void poison(const Tensor &stand_in) {
    at::AutoDispatchBelowADInplaceOrView guard;
    stand_in.fill_(at::isFloatingType(stand_in.scalar_type()) ? at::Scalar(std::numeric_limits<double>::quiet_NaN())
                                                              : at::Scalar(-1));
}

inline void warn_of_collision(const std::string &work, const Stream &stream) {
    TORCH_WARN(work, " on stream ", stream.id, " of npu:", int(stream.device),
               " uses memory that another stream's work may be using at the same time: ",
               "nothing makes one wait for the other. Its result is spoilt");
}

} // namespace fake_npu

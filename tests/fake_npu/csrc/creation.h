// Tensors are made, and their storage changed, by the device itself.
#pragma once

#include "tensors.h"

#include <torch/library.h>

namespace fake_npu {

inline c10::DeviceIndex index_of(std::optional<c10::Device> device) {
    return device && device->has_index() ? device->index() : current_device();
}

inline Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                    std::optional<c10::Device> device, std::optional<bool> pinned,
                    std::optional<at::MemoryFormat> format) {
    TORCH_CHECK(!pinned.value_or(false), "only CPU tensors can be pinned");
    check_memory_format(format);
    OnDevice guard(index_of(device));
    const auto kept = device_dtype(dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype())));
    return Tensor(at::detail::empty_generic(sizes, &DeviceMemory::get(),
                                            c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), kept, std::nullopt));
}

inline Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> dtype,
                            std::optional<at::Layout>, std::optional<c10::Device> device, std::optional<bool> pinned) {
    TORCH_CHECK(!pinned.value_or(false), "only CPU tensors can be pinned");
    return new_tensor(sizes, strides, dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype())),
                      index_of(device));
}

inline void resize_storage(const c10::Storage &storage, size_t bytes) {
    auto *grown = storage.unsafeGetStorageImpl();
    const auto device = storage.device().index();
    OnDevice guard(device);
    auto data = DeviceMemory::get().allocate(bytes);
    const size_t kept = std::min(bytes, grown->nbytes());
    if (kept) {
        Lock lock(mutex());
        run_now(current_stream(device), [&] { std::memcpy(data.get(), grown->data(), kept); });
    }
    grown->set_data_ptr(std::move(data));
    grown->set_nbytes(bytes);
}

inline const Tensor &resize_(const Tensor &self, at::IntArrayRef sizes, std::optional<at::MemoryFormat> format) {
    check_memory_format(format);
    self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
    const size_t bytes = at::detail::computeStorageNbytesContiguous(sizes, self.itemsize(), self.storage_offset());
    if (bytes > self.storage().nbytes()) {
        resize_storage(self.storage(), bytes);
    }
    return self;
}

inline Tensor &set_storage_and_shape(Tensor &self, at::Storage source, int64_t offset, at::IntArrayRef sizes,
                                     at::IntArrayRef strides) {
    auto *changed = self.unsafeGetTensorImpl();
    changed->set_storage_keep_dtype(std::move(source));
    if (strides.empty() && !sizes.empty()) {
        changed->set_storage_offset(offset);
        changed->set_sizes_contiguous(sizes);
    } else {
        changed->set_sizes_and_strides(sizes, strides, offset);
    }
    return self;
}

inline Tensor &set_storage(Tensor &self, at::Storage source) {
    const int64_t size = static_cast<int64_t>(source.nbytes() / self.itemsize());
    return set_storage_and_shape(self, std::move(source), 0, {size}, {});
}

inline void record_stream(Tensor &self, c10::Stream stream) {
    DeviceMemory::get().recordStream(self.storage().data_ptr(), stream);
}

} // namespace fake_npu

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
    library.impl("empty.memory_format", fake_npu::empty);
    library.impl("empty_strided", fake_npu::empty_strided);
    library.impl("resize_", fake_npu::resize_);
    library.impl("set_.source_Storage", fake_npu::set_storage);
    library.impl("set_.source_Storage_storage_offset", fake_npu::set_storage_and_shape);
    library.impl("record_stream", fake_npu::record_stream);
}

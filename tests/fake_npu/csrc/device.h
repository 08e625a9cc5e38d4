// What torch asks of a device: its guard (current device, streams, events), its hooks, and random generators.
#pragma once

#include "operators.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace fake_npu {

inline c10::Stream torch_stream(c10::DeviceIndex device, c10::StreamId id) {
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(NPU, device), id);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return NPU; }
    c10::Device getDevice() const override { return {NPU, current_device()}; }
    c10::Device exchangeDevice(c10::Device device) const override {
        const auto before = getDevice();
        setDevice(device);
        return before;
    }
    void setDevice(c10::Device device) const override {
        check_device(device.index());
        current_device() = device.index();
    }
    void uncheckedSetDevice(c10::Device device) const noexcept override { current_device() = device.index(); }
    c10::DeviceIndex deviceCount() const noexcept override { return device_count(); }

    c10::Stream getStream(c10::Device device) const override {
        return torch_stream(index_of(device), current_stream_id(index_of(device)));
    }
    c10::Stream getDefaultStream(c10::Device device) const override { return torch_stream(index_of(device), 0); }
    c10::Stream getNewStream(c10::Device device, int) const override {
        check_device(index_of(device));
        return torch_stream(index_of(device), new_stream_id());
    }
    c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
    c10::Stream exchangeStream(c10::Stream stream) const override {
        const auto before = getStream(stream.device());
        current_stream_id(stream.device_index()) = stream.id();
        return before;
    }
    bool queryStream(const c10::Stream &stream) const override {
        Lock lock(mutex());
        return host_asks(fake_npu::record(stream_of(stream)));
    }
    void synchronizeStream(const c10::Stream &stream) const override {
        Lock lock(mutex());
        host_waits(stream_of(stream));
    }
    void synchronizeDevice(const c10::DeviceIndex device) const override {
        Lock lock(mutex());
        for (auto &[key, stream] : streams()) {
            if (stream.device == device) {
                host_waits(stream);
            }
        }
    }
    void recordDataPtrOnStream(const c10::DataPtr &data, const c10::Stream &stream) const override {
        DeviceMemory::get().recordStream(data, stream);
    }

    void record(void **event, const c10::Stream &stream, const c10::DeviceIndex, const c10::EventFlag) const override {
        Lock lock(mutex());
        auto *recorded = new Event(fake_npu::record(stream_of(stream)));
        delete static_cast<Event *>(*event);
        *event = recorded;
    }
    void block(void *event, const c10::Stream &stream) const override {
        Lock lock(mutex());
        if (event) {
            wait(stream_of(stream), *static_cast<Event *>(event));
        }
    }
    bool queryEvent(void *event) const override {
        Lock lock(mutex());
        return !event || host_asks(*static_cast<Event *>(event));
    }
    void synchronizeEvent(void *event) const override {
        Lock lock(mutex());
        if (event) {
            host_waits(*static_cast<Event *>(event));
        }
    }
    void destroyEvent(void *event, const c10::DeviceIndex) const noexcept override {
        delete static_cast<Event *>(event);
    }
    double elapsedTime(void *begin, void *end, const c10::DeviceIndex) const override {
        Lock lock(mutex()); // torch has asked both whether they have passed
        return std::chrono::duration<double, std::milli>(*static_cast<Event *>(end)->passed -
                                                         *static_cast<Event *>(begin)->passed)
            .count();
    }
};

// A CPU generator that says it is the device's; the CPU's kernels get the one inside.
struct Generator final : c10::GeneratorImpl {
    at::Generator inner = at::detail::createCPUGenerator();

    explicit Generator(c10::DeviceIndex device)
        : GeneratorImpl(c10::Device(NPU, device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)) {}

    void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
    void set_offset(uint64_t offset) override { inner.set_offset(offset); }
    uint64_t get_offset() const override { return inner.get_offset(); }
    uint64_t current_seed() const override { return inner.current_seed(); }
    uint64_t seed() override { return inner.seed(); }
    void set_state(const c10::TensorImpl &state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
    c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
        return inner.unsafeGetGeneratorImpl()->get_state();
    }

  private:
    Generator *clone_impl() const override {
        auto *copy = new Generator(device().index());
        copy->inner = inner.clone();
        return copy;
    }
};

inline at::Generator cpu_generator(const at::Generator &generator) {
    const auto *ours = dynamic_cast<const Generator *>(generator.unsafeGetGeneratorImpl());
    return ours ? ours->inner : generator;
}

inline const at::Generator &default_generator(c10::DeviceIndex device) {
    static auto *generators = new std::map<c10::DeviceIndex, at::Generator>;
    check_device(device);
    Lock lock(mutex());
    auto &generator = (*generators)[device];
    if (!generator.defined()) {
        generator = at::make_generator<Generator>(device);
    }
    return generator;
}

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return device_count() > 0; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return device_count(); }
    void setCurrentDevice(c10::DeviceIndex device) const override { exchangeDevice(device); }
    c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
        check_device(device);
        return std::exchange(current_device(), device);
    }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
        return device < 0 ? current_device() : exchangeDevice(device);
    }
    bool isPinnedPtr(const void *data) const override { return is_pinned(data); }
    c10::Allocator *getPinnedMemoryAllocator() const override { return &PinnedMemory::get(); }
    c10::Device getDeviceFromPtr(void *data) const override {
        const BlockPtr block = block_of(data);
        TORCH_CHECK(block && block->stream, "this is no memory of an npu");
        return {NPU, block->stream->device};
    }
    at::Generator getNewGenerator(c10::DeviceIndex device) const override {
        return at::make_generator<Generator>(device < 0 ? current_device() : device);
    }
    const at::Generator &getDefaultGenerator(c10::DeviceIndex device) const override {
        return default_generator(device < 0 ? current_device() : device);
    }
    void resizePrivateUse1Bytes(const c10::Storage &storage, size_t bytes) const override {
        resize_storage(storage, bytes);
    }
};

inline void manual_seed(int64_t device, int64_t seed) {
    at::Generator(default_generator(static_cast<c10::DeviceIndex>(device)))
        .set_current_seed(static_cast<uint64_t>(seed));
}

inline Tensor get_rng_state(int64_t device) {
    return default_generator(static_cast<c10::DeviceIndex>(device)).get_state();
}

inline void set_rng_state(int64_t device, const Tensor &state) {
    at::Generator(default_generator(static_cast<c10::DeviceIndex>(device))).set_state(state);
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

static const bool registered = [] {
    c10::SetAllocator(NPU, &DeviceMemory::get());
    at::setHostAllocator(NPU, &PinnedMemory::get());
    at::RegisterPrivateUse1HooksInterface(new Hooks);
    return true;
}();

} // namespace fake_npu

TORCH_LIBRARY_FRAGMENT(fake_npu, library) {
    library.def("manual_seed(int device, int seed) -> ()", fake_npu::manual_seed);
    library.def("get_rng_state(int device) -> Tensor", fake_npu::get_rng_state);
    library.def("set_rng_state(int device, Tensor state) -> ()");
}

TORCH_LIBRARY_IMPL(fake_npu, CPU, library) { library.impl("set_rng_state", fake_npu::set_rng_state); }

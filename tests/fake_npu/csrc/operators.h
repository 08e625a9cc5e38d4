// All other operators are the CPU's, run on the device's memory.
#pragma once

#include "creation.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

#include <string>

namespace fake_npu {

at::Generator cpu_generator(const at::Generator &generator); // device.h
const at::Generator &default_generator(c10::DeviceIndex device);

// A call's tensors on the device, and the CPU tensors that take their places.
class Call {
  public:
    Call(const c10::OperatorHandle &op, torch::jit::Stack &stack) : name_(op.schema().name()) {
        const auto &arguments = op.schema().arguments();
        const size_t first = stack.size() - arguments.size();
        for (size_t i = 0; i < arguments.size(); ++i) {
            look_at(stack[first + i]);
        }
        for (size_t i = 0; i < arguments.size(); ++i) {
            const auto *alias = arguments[i].alias_info();
            replace(stack[first + i], alias && alias->isWrite());
            if (stack[first + i].isNone() && arguments[i].type()->str() == "Generator?") {
                stack[first + i] = cpu_generator(default_generator(device()));
            }
        }
    }

    c10::DeviceIndex device() const { return device_ ? device_->index() : current_device(); }

    // Notes what the call, next on the stream, reads and writes; false if it collides with another stream's work.
    bool use_all(Stream &stream) const {
        bool alone = true;
        for (const auto &[original, _, written] : tensors_) {
            alone &= use(original, written, stream, stream.asked + 1);
        }
        return alone;
    }

    // Brings home what was written: tensors given as `out` may have been resized.
    void finish(Stream &stream, bool spoilt) const {
        for (const auto &[original, stands_in, written] : tensors_) {
            if (!written) {
                continue;
            }
            if (stands_in.sizes() != original.sizes()) {
                resize_(original, stands_in.sizes(), std::nullopt);
                run_until(stream, stream.asked); // memory that is used again is poisoned first
            }
            const Tensor target = stand_in(original);
            if (stands_in.storage().data() != original.storage().data()) {
                assign(target, stands_in);
            }
            if (spoilt && target.numel()) {
                poison(target);
            }
        }
    }

    // The npu tensor for a CPU tensor that came out of the call.
    Tensor result(const Tensor &tensor, Stream &stream, bool spoilt) const {
        for (const auto &[original, stands_in, written] : tensors_) {
            if (tensor.is_same(stands_in)) {
                return original;
            }
            if (tensor.storage().unsafeGetStorageImpl() == stands_in.storage().unsafeGetStorageImpl()) {
                return view_of(original, tensor);
            }
        }
        const Tensor kept = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
        const Tensor fresh = new_tensor(kept.sizes(), kept.strides(), kept.scalar_type(), device());
        run_until(stream, stream.asked); // as above
        const Tensor target = stand_in(fresh);
        assign(target, kept);
        if (!use(fresh, true, stream, stream.asked)) {
            warn_of_collision("the result of " + name_, stream);
            spoilt = true;
        }
        if (spoilt && fresh.numel()) {
            poison(target);
        }
        return fresh;
    }

  private:
    struct Argument {
        Tensor original, stands_in;
        bool written;
    };

    std::string name_;
    std::optional<c10::Device> device_;
    std::vector<Argument> tensors_;

    // All tensors must be on one device, but for numbers: those may be on the host.
    void look_at(const Tensor &tensor) {
        if (!tensor.defined() || (!on_npu(tensor) && tensor.dim() == 0)) {
            return;
        }
        if (!device_) {
            device_ = tensor.device();
        }
        TORCH_CHECK(*device_ == tensor.device(),
                    "Expected all tensors to be on the same device, but found at least two devices, ", *device_,
                    " and ", tensor.device(), ", in ", name_);
    }

    void look_at(const c10::IValue &value) {
        if (value.isTensor()) {
            look_at(value.toTensor());
        } else if (value.isTensorList()) {
            for (const Tensor &tensor : value.toTensorVector()) {
                look_at(tensor);
            }
        } else if (value.isOptionalTensorList()) {
            for (const std::optional<Tensor> &tensor : value.toOptionalTensorVector()) {
                look_at(tensor.value_or(Tensor()));
            }
        } else if (value.isDevice() && value.toDevice().type() == NPU && !device_) {
            device_ = c10::Device(NPU, index_of(value.toDevice()));
        }
    }

    Tensor replaced(const Tensor &tensor, bool written) {
        if (!on_npu(tensor)) {
            TORCH_CHECK(!written || !tensor.defined(), name_, ": the result is on the npu, not on ",
                        tensor.defined() ? tensor.device() : at::kCPU);
            return tensor;
        }
        tensors_.push_back({tensor, stand_in(tensor), written});
        return tensors_.back().stands_in;
    }

    void replace(c10::IValue &value, bool written) {
        if (value.isTensor()) {
            value = replaced(value.toTensor(), written);
        } else if (value.isTensorList()) {
            c10::List<Tensor> list;
            for (const Tensor &tensor : value.toTensorVector()) {
                list.push_back(replaced(tensor, written));
            }
            value = std::move(list);
        } else if (value.isOptionalTensorList()) {
            c10::List<std::optional<Tensor>> list;
            for (const std::optional<Tensor> &tensor : value.toOptionalTensorVector()) {
                list.push_back(tensor ? std::optional(replaced(*tensor, written)) : std::nullopt);
            }
            value = std::move(list);
        } else if (value.isGenerator()) {
            value = cpu_generator(value.toGenerator());
        } else if (value.isDevice()) {
            value = c10::Device(at::kCPU);
        }
    }
};

inline bool returns_only_views(const c10::FunctionSchema &schema) {
    const auto is_view = [](const c10::Argument &value) {
        return value.alias_info() && !value.alias_info()->isWrite();
    };
    return !schema.returns().empty() && std::all_of(schema.returns().begin(), schema.returns().end(), is_view);
}

inline bool holds_tensors(const c10::IValue &value) { return value.isTensor() || value.isTensorList(); }

// Runs the CPU's kernel of the operator on the device's memory, in the order of the current stream.
inline void compute(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
    const size_t kept = stack->size() - op.schema().arguments().size(); // of other calls, below this one's arguments
    Call call(op, *stack);
    Stream &stream = current_stream(call.device());
    const c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
    Lock lock(mutex());
    bool alone = true;
    if (returns_only_views(op.schema())) {
        op.redispatchBoxed(cpu, stack); // no memory is read
    } else {
        alone = call.use_all(stream);
        run_now(stream, [&] { op.redispatchBoxed(cpu, stack); });
        call.finish(stream, !alone);
    }
    if (!alone) {
        warn_of_collision(op.schema().name(), stream);
    }
    bool host_has_answer = false;
    for (size_t i = kept; i < stack->size(); ++i) {
        c10::IValue &value = (*stack)[i];
        if (value.isTensor() && value.toTensor().defined()) {
            value = call.result(value.toTensor(), stream, !alone);
        } else if (value.isTensorList()) {
            c10::List<Tensor> list;
            for (const Tensor &tensor : value.toTensorVector()) {
                list.push_back(tensor.defined() ? call.result(tensor, stream, !alone) : tensor);
            }
            value = std::move(list);
        } else {
            host_has_answer |= !holds_tensors(value);
        }
    }
    if (host_has_answer) {
        host_waits(stream);
    }
}

// Convolutions bring their operands into one format first, as the device does, and give contiguous results.
inline void convolve(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    const size_t count = op.schema().arguments().size();
    for (size_t i = stack->size() - count; i < stack->size(); ++i) {
        c10::IValue &value = (*stack)[i];
        if (value.isTensor() && value.toTensor().defined()) {
            value = value.toTensor().contiguous();
        }
    }
    compute(op, stack);
}

// The device's memory as a CPU tensor, for collectives: the stream has done its work on it, and theirs counts as the
// stream's.
inline Tensor on_host(const Tensor &self) {
    Lock lock(mutex());
    Stream &stream = current_stream(self.device().index());
    const Tensor result = stand_in(self);
    const bool alone = use(self, true, stream, stream.asked + 1);
    run_now(stream, [] {});
    if (!alone) {
        warn_of_collision("a collective", stream);
        poison(result);
    }
    return result;
}

} // namespace fake_npu

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
    library.fallback(torch::CppFunction::makeFromBoxedFunction<&fake_npu::compute>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
    library.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&fake_npu::convolve>());
    library.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&fake_npu::convolve>());
}

TORCH_LIBRARY_FRAGMENT(fake_npu, library) { library.def("on_host(Tensor(a) self) -> Tensor(a)"); }

TORCH_LIBRARY_IMPL(fake_npu, PrivateUse1, library) { library.impl("on_host", fake_npu::on_host); }

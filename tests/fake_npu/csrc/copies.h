// Copies between the host and the device, and between devices: those that do not block wait in their stream's queue.
#pragma once

#include "tensors.h"

#include <torch/library.h>

namespace fake_npu {

// Whether the copy is one of memory as it is. Others go through a temporary tensor on the side that they come from.
inline bool same_bytes(const Tensor &from, const Tensor &to) {
    return from.scalar_type() == to.scalar_type() && from.sizes() == to.sizes() && from.is_contiguous() &&
           to.is_contiguous();
}

inline void copy_to_device(const Tensor &from, const Tensor &to, bool non_blocking) {
    Stream &stream = current_stream(to.device().index());
    const Tensor target = stand_in(to);
    const Position position = stream.asked + 1;
    bool alone = use(to, true, stream, position);
    if (!(non_blocking && same_bytes(from, to) && is_pinned(from.storage().data()))) {
        const Tensor source =
            non_blocking ? copy_of(from) : from; // what is not pinned is staged: the host may change it at once
        run_now(stream, [&] { assign(target, source); });
        if (!alone) {
            warn_of_collision("a copy to the device", stream);
            poison(target);
        }
        if (!non_blocking) {
            host_waits(stream);
        }
        return;
    }
    alone &= use(from, false, stream, position);
    if (!alone) {
        warn_of_collision("a copy to the device", stream);
    }
    const Tensor source = stand_in(from); // read when the copy runs
    const auto seen = std::make_shared<Tensor>();
    ask(stream, [=, block = block_of(from.storage().data())] {
        land_in(block.get());
        assign(target, source);
        *seen = copy_of(target);
        if (!alone) {
            poison(target);
        }
    });
    // A computation may have made the copy run early. Until the host knows that it has, it must leave the source alone
    // all the same.
    landings().push_back(
        {&stream, position, nullptr, [=] {
             const bool unchanged = std::memcmp(seen->const_data_ptr(), source.const_data_ptr(), seen->nbytes()) == 0;
             TORCH_CHECK(unchanged, "pinned memory was written to while a copy to npu:", int(stream.device),
                         " could still be reading it: wait for the copy first");
         }});
}

inline void copy_to_host(const Tensor &from, const Tensor &to, bool non_blocking) {
    Stream &stream = current_stream(from.device().index());
    const Tensor source = stand_in(from);
    const Position position = stream.asked + 1;
    bool alone = use(from, false, stream, position);
    if (!(non_blocking && to.is_contiguous() && is_pinned(to.storage().data()))) {
        run_now(stream, [&] { assign(to, source); });
        host_waits(stream);
        if (!alone) {
            warn_of_collision("a copy to the host", stream);
            poison(to);
        }
        return;
    }
    alone &= use(to, true, stream, position);
    if (!alone) {
        warn_of_collision("a copy to the host", stream);
    }
    const Tensor target = stand_in(to);
    const auto read = std::make_shared<Tensor>();
    ask(stream, [=] { *read = copy_of(source); });
    landings().push_back({&stream, position, block_of(target.storage().data()).get(), [=] {
                              assign(target, *read);
                              if (!alone) {
                                  poison(target);
                              }
                          }});
}

inline void copy_on_device(const Tensor &from, const Tensor &to) {
    Stream &stream = current_stream(from.device().index());
    Stream &other = current_stream(to.device().index());
    if (&stream != &other) {
        wait(stream, record(other));
    }
    const Tensor source = stand_in(from), target = stand_in(to);
    run_now(stream, [&] { assign(target, source); });
    const bool read_alone = use(from, false, stream, stream.asked);
    if (!use(to, true, stream, stream.asked) || !read_alone) {
        warn_of_collision("a copy", stream);
        poison(target);
    }
    if (&stream != &other) {
        wait(other, record(stream));
    }
}

inline Tensor copy_from(const Tensor &from, const Tensor &to, bool non_blocking) {
    Lock lock(mutex());
    if (!from.numel() && !to.numel()) {
        return to;
    }
    if (!on_npu(from)) {
        copy_to_device(from, to, non_blocking);
    } else if (!on_npu(to)) {
        copy_to_host(from, to, non_blocking);
    } else {
        copy_on_device(from, to);
    }
    return to;
}

} // namespace fake_npu

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) { library.impl("_copy_from", fake_npu::copy_from); }

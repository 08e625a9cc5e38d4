// The times of DistributedDataParallel's stages, as the host sees them; without a timer it warns.
#pragma once

#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

#include <optional>

namespace c10d {

class FakeNpuTimer : public Timer {
  public:
    explicit FakeNpuTimer(c10::Device) {}

    std::optional<int64_t> measureDifference(Event start, Event end) override {
        const auto from = getTimestamp(start), to = getTimestamp(end);
        return from && to && *from <= *to ? std::optional(*to - *from) : std::nullopt;
    }
};

C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::DeviceType::PrivateUse1, FakeNpuTimer)

} // namespace c10d

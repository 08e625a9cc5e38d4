// Memory of the simulated device, and the host's pinned memory: ordinary memory, poisoned when fresh, with a note of
// who used it.
//
// As on a real device, freed device memory goes to the next tensor of its size on the same stream, and only that
// stream's own work is sure to be done with it. A tensor freed too early, without record_stream, is therefore seen here
// too.
#pragma once

#include "streams.h"

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace fake_npu {

constexpr int POISON = 0xFF; // every byte: NaN in any floating-point type, -1 in any signed integer

struct Use {
    const Stream *stream;
    Position position;
    size_t begin, end;
    bool writes;
};

struct Block {
    char *data;
    size_t size;
    Stream *stream;        // that it was allocated on; null: pinned memory of the host
    bool recorded = false; // record_stream: in use on other streams too when it is freed
    std::vector<Use> uses;

    Block(size_t size, Stream *stream) : size(size), stream(stream) {
        data = static_cast<char *>(std::aligned_alloc(64, (size + 63) / 64 * 64));
        TORCH_CHECK_WITH(OutOfMemoryError, data, "the host has no ", size, " bytes left for the simulated npu");
        std::memset(data, POISON, size);
    }
    Block(const Block &) = delete;
    ~Block() { std::free(data); }
};
using BlockPtr = std::shared_ptr<Block>;

inline std::map<const char *, BlockPtr> &blocks() {
    static auto *live = new std::map<const char *, BlockPtr>;
    return *live;
}

// The block that holds this address; null for memory that is none of ours.
inline BlockPtr block_of(const void *address) {
    Lock lock(mutex());
    const auto *byte = static_cast<const char *>(address);
    auto after = blocks().upper_bound(byte);
    if (after == blocks().begin()) {
        return nullptr;
    }
    const BlockPtr &block = std::prev(after)->second;
    return byte < block->data + block->size ? block : nullptr;
}

inline bool is_pinned(const void *address) {
    const BlockPtr block = block_of(address);
    return block && !block->stream;
}

// Notes that the stream's work at `position` uses these bytes. False if other work may do so at the same time, and one
// of them writes.
inline bool use(Block &block, size_t begin, size_t end, bool writes, Stream &stream, Position position) {
    merge(stream.after, host_clock());
    const auto overlaps = [&](const Use &other) { return other.begin < end && begin < other.end; };
    const auto collides = [&](const Use &other) {
        return other.stream != &stream && (other.writes || writes) && overlaps(other) &&
               reached(stream.after, other.stream) < other.position;
    };
    const bool alone = std::none_of(block.uses.begin(), block.uses.end(), collides);
    // What comes after this use comes after the stream's earlier ones too.
    std::erase_if(block.uses, [&](const Use &other) {
        return other.stream == &stream && begin <= other.begin && other.end <= end && (writes || !other.writes);
    });
    block.uses.push_back({&stream, position, begin, end, writes});
    return alone;
}

inline size_t device_memory() {
    const char *text = std::getenv("FAKE_NPU_MEMORY");
    return text ? std::strtoull(text, nullptr, 10) : size_t(32) << 30;
}

class DeviceMemory final : public c10::DeviceAllocator {
    using Stats = c10::CachingDeviceAllocator::DeviceStats;
    using Kind = c10::CachingAllocator::StatArray Stats::*;
    static constexpr Kind KINDS[] = {&Stats::reserved_bytes, &Stats::allocated_bytes, &Stats::active_bytes,
                                     &Stats::allocation};

  public:
    static DeviceMemory &get() {
        static auto *one = new DeviceMemory;
        return *one;
    }

    c10::DataPtr allocate(size_t bytes) override {
        const auto device = current_device();
        if (!bytes) {
            return {nullptr, c10::Device(NPU, device)};
        }
        Lock lock(mutex());
        check_device(device);
        Stream &stream = current_stream(device);
        const size_t size = (bytes + 511) / 512 * 512;
        BlockPtr block = take_freed(stream, size);
        if (!block) {
            make_room(device, size);
            block = std::make_shared<Block>(size, &stream);
            count(device, &Stats::reserved_bytes, size);
        }
        blocks()[block->data] = block;
        count(device, &Stats::allocated_bytes, size);
        count(device, &Stats::active_bytes, size);
        count(device, &Stats::allocation, 1);
        return {block->data, block.get(), &free, c10::Device(NPU, device)};
    }

    c10::DeleterFnPtr raw_deleter() const override {
        return nullptr; // the context is not the data
    }
    void copy_data(void *to, const void *from, size_t bytes) const override { std::memcpy(to, from, bytes); }
    bool initialized() override { return true; }
    void emptyCache(c10::MempoolId_t) override {
        Lock lock(mutex());
        for (c10::DeviceIndex device = 0; device < device_count(); ++device) {
            forget_freed(device);
        }
    }
    void recordStream(const c10::DataPtr &data, c10::Stream stream) override {
        Lock lock(mutex());
        const BlockPtr block = block_of(data.get());
        if (block && block->stream != &stream_of(stream)) {
            block->recorded = true;
        }
    }
    Stats getDeviceStats(c10::DeviceIndex device) override {
        Lock lock(mutex());
        return stats_[device];
    }
    void resetAccumulatedStats(c10::DeviceIndex device) override {
        Lock lock(mutex());
        for (const auto kind : KINDS) {
            (stats_[device].*kind)[0].reset_accumulated();
        }
    }
    void resetPeakStats(c10::DeviceIndex device) override {
        Lock lock(mutex());
        for (const auto kind : KINDS) {
            (stats_[device].*kind)[0].reset_peak();
        }
    }
    std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
        Lock lock(mutex());
        const size_t all = device_memory(), reserved = reserved_on(device);
        return {all > reserved ? all - reserved : 0, all};
    }

  private:
    std::map<c10::DeviceIndex, Stats> stats_;
    std::multimap<std::pair<Stream *, size_t>, BlockPtr> freed_;

    void count(c10::DeviceIndex device, Kind kind, size_t more) { (stats_[device].*kind)[0].increase(more); }
    void uncount(c10::DeviceIndex device, Kind kind, size_t less) { (stats_[device].*kind)[0].decrease(less); }
    size_t reserved_on(c10::DeviceIndex device) { return stats_[device].reserved_bytes[0].current; }

    // Freed memory of the stream and size, poisoned in the stream's order: work that it was given before may still use
    // it.
    BlockPtr take_freed(Stream &stream, size_t size) {
        const auto found = freed_.find({&stream, size});
        if (found == freed_.end()) {
            return nullptr;
        }
        BlockPtr block = std::move(found->second);
        freed_.erase(found);
        ask(stream, [block] { std::memset(block->data, POISON, block->size); });
        return block;
    }

    void make_room(c10::DeviceIndex device, size_t size) {
        if (reserved_on(device) + size > device_memory()) {
            forget_freed(device);
        }
        const size_t reserved = reserved_on(device);
        if (reserved + size > device_memory()) {
            ++stats_[device].num_ooms;
            TORCH_CHECK_WITH(OutOfMemoryError, false, "NPU out of memory: tried to allocate ", size,
                             " bytes on npu:", int(device), ", which has ", device_memory(), ", ", reserved,
                             " of them in use");
        }
    }

    void forget_freed(c10::DeviceIndex device) {
        std::erase_if(freed_, [&](const auto &item) {
            if (item.first.first->device != device) {
                return false;
            }
            uncount(device, &Stats::reserved_bytes, item.second->size);
            return true;
        });
    }

    static void free(void *context) {
        Lock lock(mutex());
        auto &self = get();
        const auto found = blocks().find(static_cast<Block *>(context)->data);
        const BlockPtr block = found->second;
        blocks().erase(found);
        const auto device = block->stream->device;
        self.uncount(device, &Stats::allocated_bytes, block->size);
        self.uncount(device, &Stats::active_bytes, block->size);
        self.uncount(device, &Stats::allocation, 1);
        if (block->recorded) { // a real allocator waits until the other streams are done with it; not to use it again
                               // does as well
            self.uncount(device, &Stats::reserved_bytes, block->size);
        } else {
            self.freed_.insert({{block->stream, block->size}, block});
        }
    }
};

class PinnedMemory final : public at::HostAllocator {
  public:
    static PinnedMemory &get() {
        static auto *one = new PinnedMemory;
        return *one;
    }

    c10::DataPtr allocate(size_t bytes) override {
        Lock lock(mutex());
        const auto block = std::make_shared<Block>(std::max<size_t>(bytes, 1), nullptr);
        blocks()[block->data] = block;
        return {block->data, block.get(), &free, c10::Device(c10::DeviceType::CPU)};
    }
    void copy_data(void *to, const void *from, size_t bytes) const override { std::memcpy(to, from, bytes); }
    bool record_event(void *, void *, c10::Stream) override {
        return true; // a pending copy holds its block
    }
    void empty_cache() override {}
    at::HostStats get_stats() override { return {}; }
    void reset_accumulated_stats() override {}
    void reset_peak_stats() override {}

  private:
    static void free(void *context) {
        Lock lock(mutex());
        blocks().erase(static_cast<Block *>(context)->data);
    }
};

} // namespace fake_npu

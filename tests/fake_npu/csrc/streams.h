// Streams and events of the simulated device, and what the host knows of them.
//
// A stream is a queue. Copies that do not block wait in it until somebody forces them: the host, by waiting for the
// stream, or a computation on a stream that was told to wait for this one. A computation first runs what its own stream
// must have done by then, and no more, and then runs at once: so it sees what a real device would be sure to have done,
// and nothing else.
//
// Work also carries a clock, in which it can be read which work of other streams it is ordered behind. memory.h finds
// with it the accesses that only seem right because computations run at once.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <exception>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace fake_npu {

constexpr c10::DeviceType NPU = c10::DeviceType::PrivateUse1;

struct Stream;
using Position = uint64_t;                        // how many pieces of work of a stream
using Clock = std::map<const Stream *, Position>; // how far streams have come

struct Stream {
    c10::DeviceIndex device = 0;
    c10::StreamId id = 0;
    Position asked = 0;                        // work that it was ever given
    Position done = 0;                         // work of it that has run
    std::deque<std::function<void()>> pending; // the work between `done` and `asked`
    Clock after;                               // the work of others that whatever it is given from now on comes after
};

struct Event {
    Stream *stream;
    Position position;
    Clock clock; // of all that it stands for
    std::shared_ptr<std::chrono::steady_clock::time_point> passed;
};

// What happens on the host's side once it knows that a copy has run.
struct Landing {
    const Stream *stream;
    Position position;
    const void *
        block; // of pinned memory, where the copy's result becomes visible; null if it does not touch the host's memory
    std::function<void()> act;
};

// One lock for everything here: the host's threads take turns. Nothing that is done under it may wait for Python's own
// lock.
inline std::recursive_mutex &mutex() {
    static auto *one =
        new std::recursive_mutex; // never destroyed, as all the state below: tensors may outlive static objects
    return *one;
}
using Lock = std::lock_guard<std::recursive_mutex>;

inline c10::DeviceIndex device_count() {
    static const int count = [] {
        const char *text = std::getenv("FAKE_NPU_DEVICES");
        const int asked = text ? std::atoi(text) : 2;
        return std::clamp(asked, 0, 64);
    }();
    return static_cast<c10::DeviceIndex>(count);
}

inline void check_device(c10::DeviceIndex device) {
    TORCH_CHECK(device >= 0 && device < device_count(), "npu:", int(device), " is not there: this machine has ",
                int(device_count()), " npu devices");
}

inline std::map<std::pair<c10::DeviceIndex, c10::StreamId>, Stream> &streams() {
    static auto *all = new std::map<std::pair<c10::DeviceIndex, c10::StreamId>, Stream>;
    return *all;
}

inline Stream &stream_of(c10::DeviceIndex device, c10::StreamId id) {
    Lock lock(mutex());
    Stream &stream = streams()[{device, id}];
    stream.device = device;
    stream.id = id;
    return stream;
}

inline Stream &stream_of(const c10::Stream &stream) { return stream_of(stream.device_index(), stream.id()); }

inline c10::StreamId new_stream_id() {
    static c10::StreamId last = 0; // 0 is every device's default stream
    Lock lock(mutex());
    return ++last;
}

inline c10::DeviceIndex &current_device() {
    thread_local c10::DeviceIndex device = 0;
    return device;
}

inline c10::StreamId &current_stream_id(c10::DeviceIndex device) {
    thread_local std::map<c10::DeviceIndex, c10::StreamId> ids;
    return ids[device];
}

inline Stream &current_stream(c10::DeviceIndex device) { return stream_of(device, current_stream_id(device)); }

// Makes a device the current one as long as it lives.
struct OnDevice {
    c10::DeviceIndex before = current_device();
    explicit OnDevice(c10::DeviceIndex device) {
        check_device(device);
        current_device() = device;
    }
    ~OnDevice() { current_device() = before; }
};

inline void merge(Clock &into, const Clock &from) {
    for (const auto &[stream, position] : from) {
        into[stream] = std::max(into[stream], position);
    }
}

inline Position reached(const Clock &clock, const Stream *stream) {
    const auto found = clock.find(stream);
    return found == clock.end() ? 0 : found->second;
}

// What the host knows to be done; whatever it asks for comes after that.
inline Clock &host_clock() {
    static auto *clock = new Clock;
    return *clock;
}

inline std::list<Landing> &landings() {
    static auto *all = new std::list<Landing>;
    return *all;
}

inline void run_until(Stream &stream, Position position) {
    while (stream.done < position) {
        const auto work = std::move(stream.pending.front());
        stream.pending.pop_front();
        ++stream.done;
        work();
    }
}

inline void ask(Stream &stream, std::function<void()> work) {
    merge(stream.after, host_clock());
    stream.pending.push_back(std::move(work));
    ++stream.asked;
}

template <typename Work> void run_now(Stream &stream, Work &&work) {
    run_until(stream, stream.asked);
    merge(stream.after, host_clock());
    ++stream.asked;
    ++stream.done;
    work();
}

inline Event record(Stream &stream) {
    Event event{&stream, 0, stream.after, std::make_shared<std::chrono::steady_clock::time_point>()};
    merge(event.clock, host_clock());
    const auto pass = [passed = event.passed] { *passed = std::chrono::steady_clock::now(); };
    if (stream.done == stream.asked) {
        pass();
    } else {
        ask(stream, pass);
    }
    event.position = event.clock[&stream] = stream.asked;
    return event;
}

inline void wait(Stream &stream, const Event &event) {
    merge(stream.after, event.clock);
    ask(stream, [other = event.stream, position = event.position] { run_until(*other, position); });
}

// Copies to pinned memory whose results a later copy on the device reads from there, before the host has waited for
// them.
inline void land_in(const void *block) {
    for (auto landing = landings().begin(); landing != landings().end();) {
        if (landing->block == block && landing->stream->done >= landing->position) {
            landing->act();
            landing = landings().erase(landing);
        } else {
            ++landing;
        }
    }
}

inline void host_knows(const Clock &clock) {
    merge(host_clock(), clock);
    std::list<Landing> now;
    for (auto landing = landings().begin(); landing != landings().end();) {
        const auto next = std::next(landing);
        if (reached(host_clock(), landing->stream) >= landing->position) {
            now.splice(now.end(), landings(), landing);
        }
        landing = next;
    }
    std::exception_ptr error;
    for (const auto &landing : now) {
        try {
            landing.act();
        } catch (...) { // the others have landed all the same
            error = std::current_exception();
        }
    }
    if (error) {
        std::rethrow_exception(error);
    }
}

inline void host_waits(const Event &event) {
    run_until(*event.stream, event.position);
    host_knows(event.clock);
}

inline void host_waits(Stream &stream) { host_waits(record(stream)); }

// Whether the event has passed. To the next question, time will have passed too: a host that asks in a loop is not kept
// for ever.
inline bool host_asks(const Event &event) {
    if (event.stream->done >= event.position) {
        host_knows(event.clock);
        return true;
    }
    run_until(*event.stream, event.position);
    return false;
}

} // namespace fake_npu

// Run the kernels of rdn_fast/rdb/hopper.cu on a host, block by block, a thread for each of a block's threads.
#include "hopper.cu"

#include <utility>

static std::string fault;

template <class... Parameters, size_t... I>
static void call(void (*kernel)(Parameters...), void **arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_const_t<Parameters> *)arguments[I]...);
}

template <class... Parameters>
static void run_block(void (*kernel)(Parameters...), Index index, long bytes, void **arguments) {
    Block shared;
    shared.memory.assign(bytes, 0xff); // NaN
    block = &shared;
    std::vector<std::thread> threads;
    for (int i = 0; i < block_threads; i++)
        threads.emplace_back([=] {
            threadIdx = {i, 0}, blockIdx = index;
            try {
                call(kernel, arguments, std::index_sequence_for<Parameters...>());
            } catch (const Fault &error) {
                std::lock_guard<std::mutex> lock(block->mutex);
                if (block->fault.empty()) block->fault = error.what();
            }
        });
    for (std::thread &thread : threads) thread.join();
    fault = shared.fault;
}

// Return what went wrong, or null. arguments: the addresses of the kernel's parameters. bytes: of shared memory.
extern "C" const char *launch(const char *name, int across, int down, int count, long bytes, void **arguments) {
    const std::string kernel = name;
    gridDim = {across, down}, block_threads = count, fault = "";
    for (int y = 0; y < down; y++)
        for (int x = 0; x < across && fault.empty(); x++) {
            if (kernel == "layer") run_block(layer, {x, y}, bytes, arguments);
            if (kernel == "residual") run_block(residual, {x, y}, bytes, arguments);
            if (kernel == "gradient") run_block(gradient, {x, y}, bytes, arguments);
            if (kernel == "layer_weights") run_block(layer_weights, {x, y}, bytes, arguments);
            if (kernel == "fusion_weights") run_block(fusion_weights, {x, y}, bytes, arguments);
        }
    return fault.empty() ? nullptr : fault.c_str();
}

"""The only home of cuda, npu and cpu. Read select, forks, memory, faults, streams, cuda_graph, numerics, optim,
shuffle, npu_modes, npu_kernels, npu_profile, cuda_kernels."""

from rdn_fast.devices import forks as _forks
from rdn_fast.devices.cuda_graph import CudaGraphed
from rdn_fast.devices.faults import is_device_fault
from rdn_fast.devices.memory import free_memory, is_out_of_memory, keep_freed_memory, pinned_empty
from rdn_fast.devices.npu_modes import active_modes, mode, modes, modes_by_name, use_mode
from rdn_fast.devices.numerics import (
    enable_autotuning,
    exact_float32,
    has_instructions,
    has_matrix_tiles,
    low_precision,
    memory_format,
)
from rdn_fast.devices.optim import (
    adam,
    begin_mean,
    clear_overflow,
    foreach,
    gradients_stay,
    overflowed,
    overflowed_on_any_rank,
    set_learning_rate,
    static_scaler,
    supports_foreach,
)
from rdn_fast.devices.select import (
    all_devices,
    check_name,
    check_shared,
    cores,
    count,
    current_gpu,
    describe,
    hardware,
    inventory,
    is_current_gpu,
    is_host,
    make_current,
    pick,
    process_group_backend,
    resolve,
    torch_build,
)
from rdn_fast.devices.shuffle import pixel_shuffle
from rdn_fast.devices.streams import DeviceTimer, HostCopy, SideStream, side_stream, synchronize

"""The only home of cuda, npu and cpu: everything that differs between devices is answered here.

Streams, events and counts go through torch.accelerator, which serves cuda and npu with the same calls.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from rdn_fast import ascend
from rdn_fast.errors import UserError

_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
# What a process can tell an npu: may tensors have its private formats, and are operators compiled for their shapes (jit)?
_MODES = {"format+jit": (True, True), "format": (True, False), "jit": (False, True), "base": (False, False)}
_chosen_modes: dict[str, str] = {}  # by kind of device


def count(kind: str) -> int:
    """How many ranks this machine can serve on devices of this kind: accelerators, or for `cpu` the cores we may use."""
    if kind == "cpu":
        return cores()
    if kind == "npu" and ascend.load() is not None:
        return 0
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def cores() -> int:
    """How many of the host's cores we may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def have(kind: str) -> str:
    """What ranks can be served with here, in words."""
    number = count(kind)
    plural = "s" * (number > 1)
    return f"{number} CPU core{plural} and no accelerator" if kind == "cpu" else f"{number} {kind} device{plural}"


def here() -> list[torch.device]:
    """Every device of this machine, the host last."""
    return [*(torch.device(kind, i) for kind in ("npu", "cuda") for i in range(count(kind))), torch.device("cpu")]


def torch_build() -> str:
    """What this torch can compute on beside its extensions, in words."""
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"


def check_name(name: str) -> None:
    """UserError when it names no device, here or elsewhere."""
    if re.fullmatch(r"cpu:.*", name):
        raise UserError(f"--device {name}: a CPU has no index; --device cpu")
    if not re.fullmatch(r"auto|cpu|(cuda|npu)(:\d+)?", name):
        raise UserError(f"--device {name}: choose auto, cpu, cuda[:i] or npu[:i], i being a number")


def resolve(name: str) -> str:
    """The device kind that `auto`, `cpu`, `cuda[:i]` or `npu[:i]` stands for here; UserError when it is not there."""
    check_name(name)
    kind = name.partition(":")[0]
    if kind == "auto":
        kind = next((k for k in ("npu", "cuda") if count(k)), "cpu")
        if kind != "npu" and ascend.installed():
            _note(f"--device auto takes {kind}: {_why_missing('npu')}")
        return kind
    if kind != "cpu" and not count(kind):
        raise UserError(f"--device {name}: {_why_missing(kind)}; --device cpu works everywhere")
    return kind


def check_shared(name: str, device_id: int | None) -> None:
    """UserError when one device is named for several ranks: each takes the device of its own number."""
    if ":" in name or device_id is not None:
        flag = f"--device {name}" if ":" in name else f"--device-id {device_id}"
        raise UserError(f"{flag}: with several ranks each takes the device of its own number; give no index")


def pick(name: str = "auto", device_id: int | None = None, local_rank: int | None = None) -> torch.device:
    """The device to compute on, made current.

    The index comes from the name (`cuda:1`), else `device_id`, else `local_rank` (one rank of several), else the
    environment's ASCEND_DEVICE_ID (npu), else 0. Raises UserError when that device is not there.
    """
    kind = resolve(name)
    if kind == "cpu":
        return torch.device("cpu")
    _, colon, index = name.partition(":")
    if local_rank is not None:
        check_shared(name, device_id)
        said, chosen = f"local rank {local_rank}", local_rank
    elif colon:
        said, chosen = f"--device {name}", int(index)
    elif device_id is not None:
        said, chosen = f"--device-id {device_id}", device_id
    elif kind == "npu" and (variable := os.environ.get("ASCEND_DEVICE_ID")):
        said = f"ASCEND_DEVICE_ID={variable}"
        if not variable.isdecimal():
            raise UserError(f"{said}: must be the number of a device; set it to 0 or unset it")
        chosen = int(variable)
    else:
        said, chosen = f"--device {name}", 0
    if not 0 <= chosen < count(kind):
        raise UserError(f"{said}: there is no {kind}:{chosen}; this machine has {have(kind)}, counted from {kind}:0")
    device = torch.device(kind, chosen)
    make_current(device)
    return device


def make_current(device: torch.device) -> None:
    """Launch what follows on this device, also what asks for the current one (Triton does)."""
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index or 0)


def process_group_backend(device: torch.device) -> str:
    return _BACKENDS[device.type]


def low_precision(device: torch.device) -> torch.dtype:
    """The dtype of O1 and O2 where the user names none. fp16 convolutions are 20 to 30 times slower than float32 on CPUs."""
    return torch.bfloat16 if device.type == "cpu" else torch.float16


def low_precision_pays(device: torch.device) -> bool:
    """Whether low_precision() is faster than float32 here. On CPUs only matrix units (AMX) can outrun the float32 Winograd blocks:
    AVX512-BF16 doubles float32's peak, where Winograd nearly triples it (expected, not measured: profiling/LOG.md), and older CPUs
    emulate bf16, 10 to 100 times slower (measured)."""
    return device.type != "cpu" or bool(getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"))


def memory_format(device: torch.device) -> torch.memory_format:
    """channels_last where the device computes in it; Ascend's torch_npu rejects it."""
    return torch.contiguous_format if device.type == "npu" else torch.channels_last


def adam(parameters, device: torch.device, lr: float, weight_decay: float, captured: bool = False, by_apex: bool = False) -> torch.optim.Optimizer:
    """Adam in one fused pass over all parameters; `captured`: its steps will be Replayed, on CUDA as a graph; `by_apex`: apex unscales gradients."""
    if device.type == "npu" and by_apex:  # which replaces or moves gradients: NpuFusedAdam would go on reading the old ones
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, foreach=False)
    if device.type == "npu":
        return importlib.import_module("torch_npu").optim.NpuFusedAdam(parameters, lr=lr, weight_decay=weight_decay)
    captured = captured and device.type == "cuda"
    if captured:  # torch would warn of the first, uncaptured steps
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
    return torch.optim.Adam(parameters, lr=_rate(lr, device), weight_decay=weight_decay, fused=True, capturable=captured)


def static_scaler(device: torch.device, scale: float) -> torch.amp.GradScaler:
    """A gradient scaler whose scale stays as it is, for optimizers that take no flags; gradients that it sees must be finite."""
    if device.type == "npu":  # its dynamic one does not go with NpuFusedAdam
        warnings.filterwarnings("ignore", module=r"torch(_npu\.npu)?\.amp\.grad_scaler")  # no float64 for a reciprocal that is exact in float32
        return torch.get_device_module(device).amp.GradScaler(init_scale=scale, dynamic=False, enabled=scale != 1)
    return torch.amp.GradScaler(device.type, init_scale=scale, growth_interval=2**31 - 1, enabled=scale != 1)


def forget_overflow(device: torch.device) -> None:
    """Begin a span of work whose overflows are `overflowed`."""
    if _saturates(device):
        torch.get_device_module(device).amp.GradScaler.clear_npu_overflow_flag()


def overflowed(device: torch.device) -> bool:
    """Whether a result of the span was too large, where that gives no inf; elsewhere False."""
    return _saturates(device) and torch.get_device_module(device).amp.GradScaler.get_npu_overflow_flag()


def overflowed_anywhere(device: torch.device) -> torch.Tensor | bool:
    """The same of all ranks, which must all ask: bool [] on such a device."""
    if not _saturates(device):
        return False
    flag = torch.full((), int(overflowed(device)), dtype=torch.int32, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return flag.bool()


@cache
def _saturates(device: torch.device) -> bool:
    """Ascend 910 in its older mode stops at the largest number and sets a flag instead of giving inf."""
    return device.type == "npu" and not torch.get_device_module(device).utils.is_support_inf_nan()


def lists(device: torch.device) -> bool:
    """Whether one operation may take a list of tensors; torch_npu refuses that for its private formats."""
    return device.type != "npu"


def each(operation: str, tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor], *arguments) -> None:
    """tensor.operation_(other, *arguments) for each pair, in one launch where the device can."""
    if lists(tensors[0].device):
        getattr(torch, f"_foreach_{operation}_")(tensors, others, *arguments)
    else:
        for tensor, other in zip(tensors, others, strict=True):
            getattr(tensor, f"{operation}_")(other, *arguments)


def replica_options(device: torch.device) -> dict[str, bool]:
    """How DistributedDataParallel is to treat a model of one shape of batches: NpuFusedAdam needs gradients that are no part of a bucket."""
    return {"static_graph": True, "gradient_as_bucket_view": device.type != "npu"}


def set_rate(optimizer: torch.optim.Optimizer, rate: float, device: torch.device) -> None:
    """Set the learning rate of the steps to come, those of a captured graph too."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor) and group["lr"].device == device:
            group["lr"].fill_(rate)
        else:
            group["lr"] = _rate(rate, device)


def _rate(rate: float, device: torch.device):
    return torch.tensor(rate, device=device) if device.type == "cuda" else rate


class Replayed:
    """function(*tensors) -> tensors, launched as one CUDA graph after `EAGER` calls; elsewhere just called.

    A graph replays what it recorded: every call takes tensors of the same shapes, and function must ask nothing of the host and
    keep no tensor of its own. What it returns is overwritten by the next call.
    """

    EAGER = 2  # calls in which libraries choose their kernels and the optimizer makes its state; capture too is in speed.WARM_UP

    def __init__(self, function, device: torch.device):
        self._function, self._capture, self._calls, self._graph = function, device.type == "cuda", 0, None

    def __call__(self, *tensors):
        self._calls += 1
        if not self._capture or self._calls <= self.EAGER:
            return self._function(*tensors)
        if self._graph is None:
            self._inputs, graph = [t.clone() for t in tensors], torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self._outputs = self._function(*self._inputs)
            except RuntimeError as error:
                print(f"note: the step cannot be captured as a CUDA graph and is launched kernel by kernel: {str(error).splitlines()[0]}")
                self._capture = False
                return self._function(*tensors)
            self._graph = graph
        else:
            torch._foreach_copy_(self._inputs, tensors)
        self._graph.replay()
        return self._outputs


def expect_one_shape(device: torch.device) -> None:
    """From now on let cuDNN time its kernels for each new shape: worth it where one shape comes again and again."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


@contextmanager
def measuring(device: torch.device) -> Iterator[None]:
    """Within, float32 is float32, not CUDA's TF32 or Ascend's HF32, and cuDNN does not time its kernels for pictures of sizes that come once."""
    switches = []
    if device.type == "cuda":
        switches = [(torch.backends.cudnn, "allow_tf32"), (torch.backends.cudnn, "benchmark")]
    elif device.type == "npu":
        switches = [(torch.npu.conv, "allow_hf32")]
    before = [getattr(*switch) for switch in switches]
    try:
        for switch in switches:
            setattr(*switch, False)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(*switch, value)


def modes(device: torch.device) -> tuple[str, ...]:
    """Ways of computing of which a process can choose one, before it computes. Only measuring tells the fastest."""
    return tuple(_MODES) if device.type == "npu" else ()


def mode(device: torch.device) -> str:
    """The one of modes() that this process has chosen; "" for none: the device's own, which differs from chip to chip."""
    return _chosen_modes.get(device.type, "")


def use_mode(device: torch.device, name: str) -> None:
    """Compute in the mode `name` of modes(); call it before the first tensor is on the device. Raises UserError when it cannot be."""
    before = mode(device)
    if name == before:
        return
    if before:
        raise UserError(f"{device} computes in mode {before} and cannot change to {name or 'its own'} inside a process; do that in another one")
    module, (formats, jit) = torch.get_device_module(device), _MODES[name]
    try:
        module.config.allow_internal_format = formats
        module.set_compile_mode(jit_compile=jit)
    except RuntimeError as error:
        raise UserError(f"{device} refuses mode {name} ({str(error).splitlines()[0]}); after `rdn-fast tune` a new run takes one that works") from None
    _chosen_modes[device.type] = name


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken: of the accelerator, or of the host as its kernel estimates it, and as our container may."""
    if device.type != "cpu":
        return torch.get_device_module(device).mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return min([available, *_left_to_container(Path("/sys/fs/cgroup"))])


def _left_to_container(root: Path) -> list[int]:
    """Bytes below the memory limit of the control group at `root` (version 2, or 1); none where there is no limit."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            allowed, taken = (int((root / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (root / limit).with_name("memory.stat").read_text().splitlines())
            return [max(0, allowed - taken + int(stat[cached]))]  # what files were read into can be given up
        except (OSError, ValueError, KeyError):  # ValueError: "max"
            continue
    return []


def on_host(device: torch.device) -> bool:
    """Whether the device computes in the host's own memory."""
    return device.type == "cpu"


def pinned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Host memory that the device can copy from by itself: page-locked; for a CPU, plain memory."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type != "cpu")


class Lane:
    """A queue of work on an accelerator beside the one that computes (the current stream)."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.Stream(device)

    def run(self, work: Callable[[], None]) -> torch.Event:
        """Ask for what work() asks for, behind all that both queues have been asked for so far. The event: when it is done."""
        self._stream.wait_stream(torch.accelerator.current_stream(self._device))
        with self._stream:
            work()
        return self._stream.record_event()

    def join(self, done: torch.Event) -> None:
        """What the computing queue is asked for from now on waits for the event."""
        torch.accelerator.current_stream(self._device).wait_event(done)


def lane(device: torch.device) -> Lane | None:
    """A lane of the device; None for a CPU, which has nothing to copy."""
    return None if device.type == "cpu" else Lane(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe(device: torch.device) -> str:
    """A name for logs and result rows."""
    if device.type == "cpu":
        return f"cpu ({_cpu_name()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"
    return f"{device} ({torch.get_device_module(device).get_device_name(device)})"


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the error says that the device, or the host, has no memory left."""
    said = "out of memory", "can't allocate memory"  # drivers, and torch_npu of some versions, raise a plain RuntimeError
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in said)


class Stopwatch:
    """Adds up spans of device time; reading it synchronizes, starting and stopping does not.

    On an accelerator the spans lie between events of the current stream, so time that the device spent waiting for the
    host between two spans is not counted. On a CPU they are wall time.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._spans: list[tuple] = []

    def start(self) -> None:
        self._spans.append((self._now(),))

    def stop(self) -> None:
        self._spans[-1] += (self._now(),)

    def read(self) -> float:
        """Seconds in all finished spans since the last read."""
        synchronize(self._device)
        if self._device.type == "cpu":
            total = sum(end - start for start, end in self._spans)
        else:
            total = sum(start.elapsed_time(end) for start, end in self._spans) / 1e3
        self._spans.clear()
        return total

    def _now(self):
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(device=self._device, enable_timing=True)
        event.record()
        return event


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def _note(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {line}", flush=True)  # before what ranks of our own say


def _why_missing(kind: str) -> str:
    if kind == "npu":
        return ascend.load() or ascend.no_device()
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return "no CUDA GPU is visible here (nvidia-smi shows what the driver sees)"

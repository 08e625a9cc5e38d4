"""Compile kernels in CUDA C++ by NVRTC, which every CUDA build of torch brings, and launch them through the driver."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import torch

from rdn_fast.devices.select import current_gpu
from rdn_fast.errors import UserError, what_failed

_DYNAMIC_SHARED_MEMORY = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_UINT16, _L2_128_BYTES = 1, 2  # CU_TENSOR_MAP_DATA_TYPE_, CU_TENSOR_MAP_L2_PROMOTION_: two bytes of any dtype
_MAP_BYTES, _MAP_ALIGNMENT = 128, 64


def missing_toolchain(capability: tuple[int, int]) -> str | None:
    """Return why kernels for this compute capability cannot be compiled and launched on the current card, or None."""
    card = current_gpu()
    if card is None or torch.cuda.get_device_capability(card) != capability:
        return f"runs on GPUs of compute capability {'.'.join(map(str, capability))} only"
    try:
        nvrtc_version()
        _driver()
    except OSError as error:
        return f"needs NVRTC and the driver's libcuda: {what_failed(error)}"
    return None


@cache
def _nvrtc() -> ctypes.CDLL:
    """Load NVRTC of torch's CUDA: from its wheel, else as the system finds it. Raise OSError."""
    name = f"libnvrtc.so.{(torch.version.cuda or '13').partition('.')[0]}"
    wheel = next((file for folder in sys.path for file in Path(folder or ".").glob(f"nvidia/*/lib/{name}")), None)
    if wheel is None:
        return ctypes.CDLL(name)
    for builtins in wheel.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))  # some wheels' NVRTC does not find it beside itself (13.0.88)
    return ctypes.CDLL(str(wheel))


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def nvrtc_version() -> str:
    """Return NVRTC's version, `13.0`. Raise OSError where there is none."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check_nvrtc(_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def compile_cubin(source: Path, header: Path, options: Sequence[str]) -> tuple[bytes, str]:
    """Return the machine code of a file, which may include `header`, and the compiler's log.

    Raise OSError where there is no NVRTC, UserError with the compiler's first error.
    """
    library, program = _nvrtc(), ctypes.c_void_p()
    text = (ctypes.c_char_p * 1)(header.read_bytes())
    name = (ctypes.c_char_p * 1)(header.name.encode())
    _check_nvrtc(
        library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 1, text, name)
    )
    try:
        flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = library.nvrtcCompileProgram(program, len(options), flags)
        log = _take(library, program, "ProgramLog").decode(errors="replace").rstrip("\0")
        if failed:
            line = next((line for line in log.splitlines() if "error" in line), log or f"NVRTC's error {failed}")
            raise UserError(f"{source.name} cannot be compiled: {line}; choose another --rdb")
        return _take(library, program, "CUBIN"), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _take(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check_nvrtc(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    content = ctypes.create_string_buffer(size.value)
    _check_nvrtc(getattr(library, f"nvrtcGet{what}")(program, content))
    return content.raw


def _check_nvrtc(code: int) -> None:
    if code:
        get = _nvrtc().nvrtcGetErrorString
        get.restype = ctypes.c_char_p
        raise UserError(f"NVRTC fails: {get(code).decode()}; choose another --rdb")


def _check(code: int) -> None:
    if code:
        words = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(words))
        raise RuntimeError(f"CUDA error: {(words.value or b'unknown').decode()}")


class Boxes:
    """A contiguous tensor of three dimensions and two-byte elements, of which the copy engine (TMA) takes boxes."""

    def __init__(self, tensor: torch.Tensor, box: tuple[int, int, int]):
        self.tensor, self.box = tensor, box

    @cached_property
    def encoded(self) -> ctypes.Array:
        """The tensor map, aligned as the driver wants it."""
        raw = ctypes.create_string_buffer(_MAP_BYTES + _MAP_ALIGNMENT)
        address = ctypes.addressof(raw)
        encoded = (ctypes.c_char * _MAP_BYTES).from_buffer(raw, -address % _MAP_ALIGNMENT)
        sizes = (ctypes.c_uint64 * 3)(*reversed(self.tensor.shape))
        strides = (ctypes.c_uint64 * 2)(*(2 * stride for stride in reversed(self.tensor.stride()[:2])))
        box, ones = (ctypes.c_uint32 * 3)(*reversed(self.box)), (ctypes.c_uint32 * 3)(1, 1, 1)
        start = ctypes.c_void_p(self.tensor.data_ptr())
        kinds = 0, 0, _L2_128_BYTES, 0  # no interleaving, no swizzle, zeros outside
        _check(_driver().cuTensorMapEncodeTiled(encoded, _UINT16, 3, start, sizes, strides, box, ones, *kinds))
        return encoded


class Kernels:
    """The kernels of a file, compiled for each set of options and loaded on each card when they are first launched."""

    def __init__(self, source: Path, header: Path):
        self._files = source, header
        self._modules: dict[tuple, ctypes.c_void_p] = {}
        self._functions: dict[tuple, ctypes.c_void_p] = {}

    def clear(self) -> None:
        """Forget what was compiled."""
        self._modules.clear()
        self._functions.clear()

    def launch(
        self, name: str, grid: tuple[int, int], threads: int, memory: int, arguments: Sequence, options: Sequence[str]
    ) -> None:
        """Launch a kernel on torch's current stream. memory: bytes of shared memory; options: the compiler's.

        arguments: Boxes, tensors and ints for the kernel's parameters: tensor maps, pointers and ints.
        Raise UserError when it cannot be compiled, RuntimeError when it cannot be launched.
        """
        function = self._function(name, memory, tuple(options))
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _check(_driver().cuLaunchKernel(function, *grid, 1, threads, 1, 1, memory, stream, pointers, None))

    def _function(self, name: str, memory: int, options: tuple[str, ...]) -> ctypes.c_void_p:
        where = torch.cuda.current_device(), options
        if (*where, name) not in self._functions:
            if where not in self._modules:
                cubin, _ = compile_cubin(*self._files, options)
                module = ctypes.c_void_p()
                _check(_driver().cuModuleLoadData(ctypes.byref(module), cubin))
                self._modules[where] = module
            function = ctypes.c_void_p()
            _check(_driver().cuModuleGetFunction(ctypes.byref(function), self._modules[where], name.encode()))
            _check(_driver().cuFuncSetAttribute(function, _DYNAMIC_SHARED_MEMORY, memory))
            self._functions[(*where, name)] = function
        return self._functions[(*where, name)]


def _value(argument: object):
    if isinstance(argument, Boxes):
        return argument.encoded
    return ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, torch.Tensor) else ctypes.c_int(argument)

"""A stand-in for Triton's driver of a Hopper GPU: kernels are compiled for it, not launched. Needs triton."""

from types import SimpleNamespace

from triton.backends.compiler import GPUTarget

SHARED_MEMORY = 232_448  # bytes of a program on Hopper


class Hopper:
    """A driver for a Hopper GPU that is not there. Triton caches kernels by device index, so it is no real GPU's."""

    def get_current_device(self):
        return 1000

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source, metadata):
        return None

    @property
    def utils(self):
        return SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": SHARED_MEMORY})

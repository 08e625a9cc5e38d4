"""Prefetches batches as floats on the device, in one of three modes that deliver the same bits.

mmap: threads copy patches from the memory map into a ring of slots in pinned memory. A side stream copies a slot to the
device, and orients and scales its patches there.
resident: the whole file is in the device's memory, and only the patches' strides are copied.
h5py: as mmap, but read through h5py, for files that cannot be mapped.
On a CPU the threads orient and scale the patches into the slot, which is the batch.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch

from rdn_fast import devices
from rdn_fast.data import augment
from rdn_fast.data.h5 import HR, LR, PairedH5
from rdn_fast.data.patches import CutShort, compiled, crop, gather_strided_to_float, gather_to_float, read_ahead
from rdn_fast.data.sampler import PatchSampler, Share
from rdn_fast.data.slot_ring import SlotRing
from rdn_fast.errors import UserError
from rdn_fast.terminal import Bar, bytes_in_words

RESIDENT_SHARE = 0.4  # largest share of the device's free memory that `auto` fills with data
AHEAD = 3  # slots beside those that are being filled
_SLOW = 3e-9  # seconds per byte of a patch above which it came from a disk; the page cache takes a fifth


class Batch(NamedTuple):
    """One rank's share of a step, valid until the next batch is asked for.

    lr: float32 [b, 3, p, p], hr: float32 [b, 3, s*p, s*p], in 0..1, on the device in its memory format.
    count: how many of the b patches count: all, or 0 on a rank with an empty share, which still computes one patch.
    total: patches of the step over all ranks.
    """

    lr: torch.Tensor
    hr: torch.Tensor
    count: int
    total: int


def check_mode(mode: str, sampler: PatchSampler, device: torch.device | None) -> None:
    """Raise UserError when the file cannot be delivered in this mode. device: None while it is not known."""
    pairs = sampler.pairs
    if mode in ("mmap", "resident") and pairs.unmappable is not None:
        remedy = f"repack it with `rdn-fast prepare --repack {pairs.path} NEW.h5`, or give --data-mode h5py"
        raise UserError(f"{pairs.path}: --data-mode {mode} needs contiguous pixels, but {pairs.unmappable}; {remedy}")
    if mode == "resident" and device is not None and pairs.size > (free := _free_memory(sampler, device)):
        needs = f"needs {bytes_in_words(pairs.size)} of memory, and {bytes_in_words(free)} are free"
        raise UserError(f"{pairs.path}: --data-mode resident {needs}; give --data-mode mmap")


def resolve_mode(mode: str, sampler: PatchSampler, device: torch.device, steps: int) -> tuple[str, str]:
    """Return the mode to use in a run of so many steps ("auto": decided here), and the reason.

    Raises UserError as check_mode().
    """
    check_mode(mode, sampler, device)
    pairs = sampler.pairs
    if mode != "auto":
        return mode, "as asked"
    if pairs.unmappable is not None:
        return "h5py", f"{pairs.unmappable}; `rdn-fast prepare --repack {pairs.path} NEW.h5` makes it fast"
    if devices.is_host(device):
        return "mmap", "the page cache keeps what is used"
    free, size = _free_memory(sampler, device), bytes_in_words(pairs.size)
    limit = f"{RESIDENT_SHARE:.0%} of the device's free {bytes_in_words(free)}"
    if pairs.size > RESIDENT_SHARE * free:
        return "mmap", f"its {size} are more than {limit}"
    used = steps * sampler.batch_size * sampler.patch_bytes
    if used < pairs.size:
        return "mmap", f"this run needs {bytes_in_words(used)} of its {size}"
    return "resident", f"its {size} are less than {limit}"


def _free_memory(sampler: PatchSampler, device: torch.device) -> int:
    """Return the bytes that this rank may allocate. Ranks share a host's memory."""
    return devices.free_memory(device) // (sampler.world if devices.is_host(device) else 1)


class _Slot:
    """Host memory for one batch.

    For a CPU: `floats`, the batch itself.
    For an accelerator, pinned: `copies`, uint8 [B, edge, edge, 3] of LR and of HR (none in resident mode), and
    `strides`, int64 [2, 3, B], of the oriented LR and HR patches within the copies or the resident file.
    """

    def __init__(self, batch: int, edges: tuple[int, int], device: torch.device, on_host: bool, resident: bool):
        self.share: Share | None = None
        self._size = batch
        self.floats = _float_buffers(batch, edges, device) if on_host else []
        self.copies: list[torch.Tensor] = []
        self.strides: torch.Tensor | None = None
        if not on_host:
            self.strides = devices.pinned_empty((2, 3, batch), torch.int64, device)
            if not resident:
                self.copies = [devices.pinned_empty((batch, edge, edge, 3), torch.uint8, device) for edge in edges]

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [*self.floats, *self.copies, *([] if self.strides is None else [self.strides])]

    def batch(self, floats: list[torch.Tensor]) -> Batch:
        count = len(self.share.images)
        if count < self._size:
            floats = [patches[:count] for patches in floats]
        return Batch(*floats, self.share.count, self.share.total)


class _Transfer(NamedTuple):
    """A batch in flight to the device. `done` is the event of its arrival."""

    step: int
    done: torch.Event
    batch: Batch


class _DeviceBuffers:
    """The device's side: two batches of floats, one in use and one arriving on the side stream.

    flat: the resident file, uint8 [bytes]; None where the patches come with the slot.
    """

    def __init__(
        self,
        stream: devices.SideStream,
        batch: int,
        edges: tuple[int, int],
        device: torch.device,
        flat: torch.Tensor | None,
    ):
        self.stream, self._flat = stream, flat
        self._strides = torch.empty(2, 3, batch, dtype=torch.int64, device=device)
        self._copies = [
            torch.empty(batch, edge, edge, 3, dtype=torch.uint8, device=device) for edge in edges if flat is None
        ]
        self._floats = [_float_buffers(batch, edges, device) for _ in range(2)]

    def send(self, step: int, slot: _Slot) -> _Transfer:
        """Enqueue the slot's copy to the device. The slot must stay as it is until the transfer is done."""
        batch = slot.batch(self._floats[step % 2])  # last used by step - 2, which the side stream waits for

        def work() -> None:
            strides = self._strides.copy_(slot.strides, non_blocking=True)
            for group, patches in enumerate((batch.lr, batch.hr)):
                flat = self._flat
                if flat is None:
                    flat = self._copies[group].copy_(slot.copies[group], non_blocking=True).view(-1)
                gather_strided_to_float(flat, strides[group, :, : len(patches)], patches)

        return _Transfer(step, self.stream.run(work), batch)


class PrefetchLoader:
    """Iterates over this rank's batches of steps start..stop-1, counted through all epochs.

    A context manager: leaving it ends its threads.

    `waited`: seconds so far for which next() found no batch ready.
    `about`: a line on the mode, its reason, and the host memory in use.
    """

    def __init__(self, sampler: PatchSampler, device: torch.device, mode: str, workers: int, start: int, stop: int):
        """workers: threads that fill slots; 0: next() fills. Raises UserError as resolve_mode()."""
        self.waited = 0.0
        self._sampler, self._pairs, self._step, self._stop = sampler, sampler.pairs, start, stop
        self._mode, why = resolve_mode(mode, sampler, device, stop - start)
        self._slow = True  # whether pixels come from a disk
        stream = devices.side_stream(device)
        self._flat = None  # the bytes that patches are gathered from; None: copies of the patches
        if self._mode == "resident":
            self._flat = _resident(self._pairs, device, quiet=sampler.rank > 0)
        elif self._mode == "mmap":
            if compiled():  # else nothing tells the kernel what to read instead
                self._pairs.expect_random_access()
            if stream is None:
                self._flat = self._pairs.bytes
        count = max(1, min(AHEAD + workers, stop - start))
        size = sampler.batch_size, sampler.edges, device
        self._slots = [_Slot(*size, stream is None, self._mode == "resident") for _ in range(count)]
        self._device_buffers = None if stream is None else _DeviceBuffers(stream, *size, self._flat)
        self._current: _Transfer | None = None  # the batch that the caller has
        self._next: _Transfer | None = None  # the batch in flight behind it
        self._workers = workers
        held = sum(_held_bytes(tensor, pinned=stream is not None) for slot in self._slots for tensor in slot.tensors)
        threads = f"{workers} fill thread{'s' * (workers != 1)}"
        memory = bytes_in_words(held) + " page-locked" * (stream is not None)
        self.about = f"data: {self._mode} ({why}); {threads}, {count} slots, {memory}"

    def __enter__(self):
        self._ring = SlotRing(self._slots, self._fill, range(self._step, self._stop), self._workers)
        return self

    def __exit__(self, *_) -> None:
        self._ring.close()
        if self._next is not None:
            self._next.done.synchronize()  # nothing may arrive in memory that is freed

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        if self._step == self._stop:
            raise StopIteration
        step, self._step = self._step, self._step + 1
        return self._next_on_host(step) if self._device_buffers is None else self._next_on_device(step)

    def _next_on_host(self, step: int) -> Batch:
        slot = self._take(step)
        self._ring.give_back(step - 1)  # last: it wakes a fill thread, which then competes for Python's lock
        return slot.batch(slot.floats)

    def _next_on_device(self, step: int) -> Batch:
        buffers = self._device_buffers
        transfer = self._next or buffers.send(step, self._take(step))
        buffers.stream.join(transfer.done)
        if self._current is not None:
            self._current.done.synchronize()  # its slot has been read and may be filled again
            self._ring.give_back(self._current.step)
        self._current, self._next = transfer, None
        if self._ring.ready(step + 1):
            self._next = buffers.send(step + 1, self._take(step + 1))
        return transfer.batch

    def _take(self, step: int) -> _Slot:
        began = time.perf_counter()
        slot = self._ring.take(step)
        self.waited += time.perf_counter() - began
        return slot

    def _fill(self, step: int, slot: _Slot) -> None:
        """Fill the slot with the step's patches, or with their places. Runs in a fill thread."""
        began = time.perf_counter()
        slot.share = self._sampler.share(step)
        if self._mode != "resident":
            self._pairs.check()
        try:
            if self._mode == "mmap" and self._slow:
                for group, edge in enumerate(self._sampler.edges):
                    read_ahead(self._pairs.bytes, slot.share.starts[group], slot.share.pitches[group], edge)
            for group in (LR, HR):
                self._fill_group(slot, group)
        except CutShort:
            raise self._pairs.truncation() from None
        if self._mode != "resident":
            self._pairs.check()  # again: no step may learn from a file that changed meanwhile
        self._slow = time.perf_counter() - began > _SLOW * self._sampler.patch_bytes * len(slot.share.images)

    def _fill_group(self, slot: _Slot, group: int) -> None:
        share, edge = slot.share, self._sampler.edges[group]
        n = len(share.images)
        if self._flat is not None:
            flat, start, pitch = self._flat, share.starts[group], share.pitches[group]
        else:
            copies = slot.copies[group][:n] if slot.copies else torch.empty(n, edge, edge, 3, dtype=torch.uint8)
            self._copy(share, group, copies)
            flat, start, pitch = copies.view(-1), np.arange(n) * (3 * edge**2), np.full(n, 3 * edge)
        if self._device_buffers is None:
            gather_to_float(flat, start, pitch, share.plan.orientation, slot.floats[group][:n])
        else:
            strides = augment.strides(start, pitch, share.plan.orientation, edge)
            slot.strides[group, :, :n] = torch.from_numpy(strides)

    def _copy(self, share: Share, group: int, out: torch.Tensor) -> None:
        """Copy patches as they lie in the file: out uint8 [n, edge, edge, 3]."""
        if self._mode == "mmap":
            crop(self._pairs.bytes, share.starts[group], share.pitches[group], out)
            return
        factor, plan = self._sampler.factors[group], share.plan
        for i, top, left, patch in zip(share.images, plan.top * factor, plan.left * factor, out.numpy(), strict=True):
            self._pairs.read_part(group, i, top, left, patch)


def _float_buffers(batch: int, edges: tuple[int, int], device: torch.device) -> list[torch.Tensor]:
    memory_format = devices.memory_format(device)
    return [torch.empty(batch, 3, edge, edge, device=device, memory_format=memory_format) for edge in edges]


def _held_bytes(tensor: torch.Tensor, pinned: bool) -> int:
    """Return the host memory behind a tensor. Pinned blocks are powers of two."""
    return 1 << (tensor.nbytes - 1).bit_length() if pinned else tensor.nbytes


def _resident(pairs: PairedH5, device: torch.device, quiet: bool) -> torch.Tensor:
    """Read the whole file into the device's memory: uint8 [bytes]."""
    flat = torch.empty(pairs.size, dtype=torch.uint8, device=device)
    block = torch.empty(min(pairs.size, 1 << 26), dtype=torch.uint8)
    with Bar("reading, block", -(-pairs.size // len(block)), quiet=quiet) as bar:
        for start in range(0, pairs.size, len(block)):
            part = block[: pairs.size - start]
            pairs.read_into(part.numpy(), start)
            flat[start : start + len(part)].copy_(part)
            bar.advance()
    pairs.check()
    return flat

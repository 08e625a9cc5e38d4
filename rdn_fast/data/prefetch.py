"""Delivers batches before they are asked for, as floats on the device, in one of three ways that give the same bits.

mmap: threads cut patches out of the memory map into a ring of page-locked slots; a copy stream takes them to the device and turns
them there. resident: the whole file is in the device's memory, and only addresses cross. h5py: like mmap, read through h5py, for
files that cannot be mapped. On a CPU there is nothing to cross: the threads turn the patches on the way into the slot.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch

from rdn_fast import devices
from rdn_fast.data.h5 import HR, LR, PairedH5
from rdn_fast.data.patches import CutShort, compiled, crop, develop, expect
from rdn_fast.data.sampler import PatchSampler, Share
from rdn_fast.data.slot_ring import SlotRing
from rdn_fast.errors import UserError
from rdn_fast.terminal import Bar

RESIDENT_SHARE = 0.4  # of the device's free memory, at most, that `auto` fills with data
AHEAD = 3  # slots beside those that are being filled
_SLOW = 3e-9  # seconds a byte of a patch: what is in the page cache takes a fifth of that


class Batch(NamedTuple):
    """One rank's share of a step; valid until the next is asked for.

    lr: float32 [b, 3, p, p], hr: float32 [b, 3, s*p, s*p], in 0..1, on the device in its memory format. `count` of the b patches
    are this rank's (0 or b: a rank with an empty share computes one patch that does not count), `total` is the step's over all ranks.
    """

    lr: torch.Tensor
    hr: torch.Tensor
    count: int
    total: int


def check_mode(mode: str, sampler: PatchSampler, device: torch.device | None) -> None:
    """UserError when the file cannot be delivered in this mode; the device may not be known yet."""
    pairs = sampler.pairs
    if mode in ("mmap", "resident") and pairs.unmappable is not None:
        remedy = f"repack it with `rdn-fast prepare --repack {pairs.path} NEW.h5`, or give --data-mode h5py"
        raise UserError(f"{pairs.path}: --data-mode {mode} needs contiguous pixels, but {pairs.unmappable}; {remedy}")
    if mode == "resident" and device is not None and pairs.size > (free := _free(sampler, device)):
        raise UserError(
            f"--data-mode resident: {pairs.path} holds {_bytes(pairs.size)}, and {_bytes(free)} of memory are free; give --data-mode mmap"
        )


def resolve_mode(mode: str, sampler: PatchSampler, device: torch.device, steps: int) -> tuple[str, str]:
    """The mode that `mode` stands for in a run of so many steps, and why. Raises UserError when it cannot be had."""
    check_mode(mode, sampler, device)
    pairs = sampler.pairs
    if mode != "auto":
        return mode, "as asked"
    if pairs.unmappable is not None:
        return "h5py", f"{pairs.unmappable}; `rdn-fast prepare --repack {pairs.path} NEW.h5` makes it fast"
    if devices.is_host(device):
        return "mmap", "the page cache keeps what is used"
    free, size = _free(sampler, device), _bytes(pairs.size)
    if pairs.size > RESIDENT_SHARE * free:
        return "mmap", f"its {size} are more than {RESIDENT_SHARE:.0%} of the device's free {_bytes(free)}"
    used = steps * sampler.batch_size * sampler.patch_bytes
    if used < pairs.size:
        return "mmap", f"this run needs {_bytes(used)} of its {size}"
    return "resident", f"its {size} are less than {RESIDENT_SHARE:.0%} of the device's free {_bytes(free)}"


def _free(sampler: PatchSampler, device: torch.device) -> int:
    """Bytes that this rank may still take."""
    return devices.free_memory(device) // (
        sampler.world if devices.is_host(device) else 1
    )  # ranks share a host's memory


class _Slot:
    """Host memory of one batch: `pixels` (of LR and HR; none in resident mode) and how to walk them; on a CPU, the batch itself."""

    def __init__(self, batch: int, sizes: tuple[int, int], device: torch.device, here: bool, resident: bool):
        self.walk = devices.pinned_empty((2, 3, batch), torch.int64, device)
        if here:
            self.pixels = _floats(batch, sizes, device)
        else:
            self.pixels = (
                []
                if resident
                else [devices.pinned_empty((batch, size, size, 3), torch.uint8, device) for size in sizes]
            )
        self.share: Share | None = None
        self.here: Batch | None = None

    def batch(self, floats: list[torch.Tensor]) -> Batch:
        return Batch(*(patches[: len(self.share.index)] for patches in floats), self.share.count, self.share.total)


class _Sent(NamedTuple):
    """A batch on its way to the device; `done` is the event of its arrival."""

    step: int
    done: torch.Event
    batch: Batch


class _Crossing:
    """The device's side: two batches of floats, one in use and one arriving on a stream of its own."""

    def __init__(
        self,
        lane: devices.SideStream,
        batch: int,
        sizes: tuple[int, int],
        device: torch.device,
        flat: torch.Tensor | None,
    ):
        self.lane, self._flat = lane, flat
        self._walk = torch.empty(2, 3, batch, dtype=torch.int64, device=device)
        self._pixels = [
            torch.empty(batch, size, size, 3, dtype=torch.uint8, device=device) for size in sizes if flat is None
        ]
        self._floats = [_floats(batch, sizes, device) for _ in range(2)]

    def send(self, step: int, slot: _Slot) -> _Sent:
        batch = slot.batch(self._floats[step % 2])  # the computing stream's last use of it was step - 2's

        def work() -> None:
            walk = self._walk.copy_(slot.walk, non_blocking=True)
            for which, patches in enumerate((batch.lr, batch.hr)):
                flat = (
                    self._flat
                    if self._flat is not None
                    else self._pixels[which].copy_(slot.pixels[which], non_blocking=True).view(-1)
                )
                develop(flat, walk[which, :, : len(patches)], patches)

        return _Sent(step, self.lane.run(work), batch)


class PrefetchLoader:
    """An iterator over this rank's batches of steps start..stop-1, counted through all epochs. A context manager: leaving it ends its threads.

    `waited`: seconds for which next() found no batch ready, so far. `about`: a line on the mode, why, and the host memory that it holds.
    """

    def __init__(self, sampler: PatchSampler, device: torch.device, mode: str, workers: int, start: int, stop: int):
        """`workers`: threads that fill; 0: next() does. Raises UserError (see resolve_mode)."""
        self.waited = 0.0
        self._sampler, self._pairs, self._step, self._stop = sampler, sampler.pairs, start, stop
        self._mode, why = resolve_mode(mode, sampler, device, stop - start)
        self._slow = True  # whether pixels come from a disk
        lane = devices.side_stream(device)
        self._flat = None  # the bytes that patches are turned out of; None: those of their slot
        if self._mode == "resident":
            self._flat = _resident(self._pairs, device, quiet=sampler.rank > 0)
        elif self._mode == "mmap":
            if compiled():  # else nothing tells the kernel what to read instead
                self._pairs.expect_crops()
            if lane is None:
                self._flat = self._pairs.bytes
        count = max(1, min(AHEAD + workers, stop - start))
        self._slots = [
            _Slot(sampler.batch_size, sampler.edges, device, lane is None, self._mode == "resident")
            for _ in range(count)
        ]
        self._crossing = (
            None if lane is None else _Crossing(lane, sampler.batch_size, sampler.edges, device, self._flat)
        )
        self._before: _Sent | None = None  # the batch that the caller has
        self._next: _Sent | None = None  # and the one on its way
        self._workers = workers
        tensors = [t for slot in self._slots for t in (slot.walk, *slot.pixels)]
        held = sum(
            t.nbytes if lane is None else 1 << (t.nbytes - 1).bit_length() for t in tensors
        )  # page-locked blocks are powers of two
        kind = "" if lane is None else " page-locked"
        self.about = f"data: {self._mode} ({why}); {workers} fill thread{'s' * (workers != 1)}, {count} slots, {_bytes(held)}{kind}"

    def __enter__(self):
        self._ring = SlotRing(self._slots, self._fill, range(self._step, self._stop), self._workers)
        return self

    def __exit__(self, *_) -> None:
        self._ring.close()
        if self._next is not None:
            self._next.done.synchronize()  # nothing may arrive in memory that is given back

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        if self._step == self._stop:
            raise StopIteration
        step, self._step = self._step, self._step + 1
        return self._here(step) if self._crossing is None else self._across(step)

    def _here(self, step: int) -> Batch:
        self._ring.give_back(step - 1)
        return self._take(step).here

    def _across(self, step: int) -> Batch:
        sent = self._next or self._crossing.send(step, self._take(step))
        self._crossing.lane.join(sent.done)  # the computing stream waits, the host does not
        if self._before is not None:
            self._before.done.synchronize()  # its slot has been read: it may be filled again
            self._ring.give_back(self._before.step)
        self._before, self._next = sent, None
        if self._ring.ready(step + 1):
            self._next = self._crossing.send(step + 1, self._take(step + 1))
        return sent.batch

    def _take(self, step: int) -> _Slot:
        began = time.perf_counter()
        slot = self._ring.take(step)
        self.waited += time.perf_counter() - began
        return slot

    def _fill(self, step: int, slot: _Slot) -> None:
        """Make the slot hold the step's patches, or where they are; in a fill thread."""
        began = time.perf_counter()
        slot.share = self._sampler.share(step)
        if self._mode == "resident":
            self._cut(slot)
        else:
            self._pairs.check()  # before, so as not to read what is gone, and after, so that nothing is learnt of a file in between
            self._cut_or_read(slot)
            self._pairs.check()
        if self._crossing is None:
            slot.here = slot.batch(slot.pixels)
        self._slow = time.perf_counter() - began > _SLOW * self._sampler.patch_bytes * len(slot.share.index)

    def _cut_or_read(self, slot: _Slot) -> None:
        try:
            if self._mode == "h5py":
                self._read(slot)
            else:
                self._cut(slot)
        except CutShort:
            raise self._pairs.cut_short() from None

    def _cut(self, slot: _Slot) -> None:
        sampler, epoch, index = self._sampler, slot.share.epoch, slot.share.index
        if self._slow and self._mode == "mmap":
            for group in (LR, HR):
                expect(
                    self._pairs.bytes, epoch.starts[group][index], sampler.pitches[group][index], sampler.edges[group]
                )
        for group in (LR, HR):
            if self._flat is not None:
                self._turn(slot, group, self._flat, epoch.walks[group].take(index, axis=1))
            else:
                patches = slot.pixels[group][: len(index)]
                crop(self._pairs.bytes, epoch.starts[group][index], sampler.pitches[group][index], patches)
                self._turn_copies(slot, group, patches)

    def _read(self, slot: _Slot) -> None:
        sampler, plan, index = self._sampler, slot.share.epoch.plan, slot.share.index
        for group, (factor, edge) in enumerate(zip(sampler.factors, sampler.edges, strict=True)):
            patches = (
                torch.empty(len(index), edge, edge, 3, dtype=torch.uint8)
                if self._crossing is None
                else slot.pixels[group][: len(index)]
            )
            for k, i in enumerate(index):
                self._pairs.read_part(
                    group, sampler.images[i], plan.top[i] * factor, plan.left[i] * factor, patches.numpy()[k]
                )
            self._turn_copies(slot, group, patches)

    def _turn_copies(self, slot: _Slot, group: int, patches: torch.Tensor) -> None:
        """patches: uint8 [n, edge, edge, 3], as they lie in the file."""
        walk = slot.share.epoch.turns[group].take(slot.share.index, axis=1)
        walk[0] += np.arange(len(patches)) * patches[0].numel()
        self._turn(slot, group, patches.view(-1), walk)

    def _turn(self, slot: _Slot, group: int, source: torch.Tensor, walk: np.ndarray) -> None:
        """Note how to walk the source, uint8 [bytes]; on a CPU do it."""
        walk = torch.from_numpy(walk)
        if self._crossing is None:
            develop(source, walk, slot.pixels[group][: walk.shape[1]])
        else:
            slot.walk[group, :, : walk.shape[1]] = walk


def _floats(batch: int, sizes: tuple[int, int], device: torch.device) -> list[torch.Tensor]:
    layout = devices.memory_format(device)
    return [torch.empty(batch, 3, size, size, device=device, memory_format=layout) for size in sizes]


def _resident(pairs: PairedH5, device: torch.device, quiet: bool) -> torch.Tensor:
    """The whole file, uint8 [bytes], in the device's memory."""
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


def _bytes(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"

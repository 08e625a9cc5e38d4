"""Delivery: the same batches, bit for bit, in every mode, by any number of threads, for any rank, from any step on."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import h5py
import numpy as np
import pytest
import torch
from cutting import CPU, PATCH, by_hand, random_pairs, same, save_stream, stream
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from runs import ROOT
from waiting import PATIENCE, Caller

from rdn_fast import devices
from rdn_fast.data import patches, prefetch
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.prefetch import Batch, PrefetchLoader, check_mode, resolve_mode
from rdn_fast.data.sampler import PatchSampler
from rdn_fast.data.slot_ring import SlotRing
from rdn_fast.errors import Failure, UserError

MODES = ("mmap", "resident", "h5py")
CUDA = torch.device("cuda")  # only a name here: nothing is asked of it
all_modes = pytest.mark.parametrize("mode", MODES)
any_workers = pytest.mark.parametrize("workers", [0, 1, 3])


class Files(NamedTuple):
    """The same 20 pairs in two files; batches of 6 leave 2 for the last step."""

    images: list
    plain: PairedH5
    packed: PairedH5  # compressed: only h5py can read it


def sampler(pairs: PairedH5, batch_size: int = 6, seed: int = 9, **options) -> PatchSampler:
    return PatchSampler(pairs, PATCH, batch_size, seed, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_h5) -> dict[int, Files]:
    """By scale."""
    folder = tmp_path_factory.mktemp("prefetch")

    def make(scale: int) -> Files:
        images = random_pairs(20, scale)
        packed = make_h5(folder / f"packed_x{scale}.h5", images, chunks=(4, 5, 3), compression="gzip")
        return Files(images, PairedH5(make_h5(folder / f"x{scale}.h5", images), scale), PairedH5(packed, scale))

    return {scale: make(scale) for scale in (2, 3, 4)}


@pytest.fixture
def own_file(files, tmp_path) -> Path:
    """A file that the test may change, last changed long ago: file systems count time in steps of milliseconds."""
    path = Path(shutil.copy(files[2].plain.path, tmp_path / "own.h5"))
    os.utime(path, ns=(10**18, 10**18))
    return path


# ---- the stream ----


@pytest.mark.parametrize("c", [True, False], ids=["C", "tensors"])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("mode", [*MODES, "packed"])
@any_workers
def test_batches_are_what_slices_and_flips_give(files, monkeypatch, c, scale, mode, workers):
    if not c:
        monkeypatch.setattr(patches, "_library", lambda: None)
    images, plain, packed = files[scale]
    source, mode = (sampler(packed), "auto") if mode == "packed" else (sampler(plain), mode)
    assert same(stream(source, mode, workers, 0, 9), by_hand(source, images, 0, 9))


def test_the_images_are_not_alike(files):
    """A stream of wrong patches would be seen: no two patches of an epoch are the same."""
    source = sampler(files[2].plain)
    seen = {patch.numpy().tobytes() for batch in by_hand(source, files[2].images) for patch in batch.hr}
    assert len(seen) == 20


@all_modes
@pytest.mark.parametrize("workers", [0, 3])
def test_every_step_of_two_epochs_is_a_place_to_resume(files, mode, workers):
    source = sampler(files[2].plain)
    whole = by_hand(source, files[2].images, 0, 9)
    for start in range(9):
        assert same(stream(source, mode, workers, start, 9), whole[start:])
    for stop in range(4):
        assert same(stream(source, mode, workers, 0, stop), whole[:stop])


@all_modes
@any_workers
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [2, 4])
def test_shares_of_ranks_make_the_batch_of_one(files, mode, workers, drop_last, world):
    single = stream(sampler(files[2].plain, 12, drop_last=drop_last), "mmap", 0, 0, 5)
    shares = [
        stream(sampler(files[2].plain, 12 // world, rank=rank, world=world, drop_last=drop_last), mode, workers, 0, 5)
        for rank in range(world)
    ]
    joined = [
        Batch(
            *(torch.cat([getattr(batch, name)[: batch.count] for batch in batches]) for name in ("lr", "hr")),
            sum(b.count for b in batches),
            batches[0].total,
        )
        for batches in zip(*shares, strict=True)
    ]
    assert same(joined, single)
    assert {batch.total for batch in single} == ({12} if drop_last else {12, 8})


@st.composite
def deliveries(draw) -> dict:
    world = draw(st.sampled_from([1, 2, 3, 4]))
    start = draw(st.integers(0, 30))
    return {
        "c": draw(st.booleans()),
        "ahead": draw(st.integers(1, 6)),
        "scale": draw(st.sampled_from([2, 3, 4])),
        "sampler": {
            "batch_size": draw(st.integers(1, 12)),
            "seed": draw(st.integers(0, 2**63)),
            "world": world,
            "rank": draw(st.integers(0, world - 1)),
            "drop_last": draw(st.booleans()),
        },
        "stream": {
            "mode": draw(st.sampled_from(MODES)),
            "workers": draw(st.integers(0, 4)),
            "start": start,
            "stop": start + draw(st.integers(0, 12)),
        },
    }


@given(way=deliveries())
@settings(deadline=None, max_examples=60)
def test_any_delivery_is_what_slices_and_flips_give(files, way):
    batch = way["sampler"]["batch_size"] * way["sampler"]["world"]
    assume(not way["sampler"]["drop_last"] or batch <= 20)
    images, plain, _ = files[way["scale"]]
    source = sampler(plain, **way["sampler"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefetch, "AHEAD", way["ahead"])
        if not way["c"]:
            patch.setattr(patches, "_library", lambda: None)
        assert same(
            stream(source, **way["stream"]), by_hand(source, images, way["stream"]["start"], way["stream"]["stop"])
        )


def test_hints_to_the_kernel_change_nothing(files, monkeypatch):
    asked = []
    monkeypatch.setattr(prefetch, "_SLOW", 0)  # every fill seems to have come from a disk
    monkeypatch.setattr(prefetch, "read_ahead", lambda *arguments: asked.append(1) or patches.read_ahead(*arguments))
    source = sampler(files[2].plain)
    assert same(stream(source, "mmap", 1, 0, 9), by_hand(source, files[2].images, 0, 9))
    assert len(asked) == 18  # LR and HR of every step


def test_batches_are_floats_in_the_devices_format(files):
    with PrefetchLoader(sampler(files[3].plain), CPU, "auto", 1, 0, 4) as source:
        shapes = []
        for batch in source:
            for tensor in (batch.lr, batch.hr):
                assert tensor.dtype == torch.float32
                assert tensor.device == CPU
                assert tensor.is_contiguous(memory_format=torch.channels_last)
                assert 0 <= tensor.min() < 0.1
                assert 0.9 < tensor.max() <= 1
            shapes.append((batch.lr.shape, batch.hr.shape))
    assert shapes == [((n, 3, PATCH, PATCH), (n, 3, 3 * PATCH, 3 * PATCH)) for n in (6, 6, 6, 2)]


@any_workers
def test_a_batch_is_valid_until_the_next_is_asked_for(files, monkeypatch, workers):
    taken = []

    class Spoiling(SlotRing):
        def take(self, step):
            taken.append(step)
            return super().take(step)

        def give_back(self, step):
            if step in taken:
                for tensor in self._slots[step % len(self._slots)].floats:
                    tensor.fill_(torch.nan)
            super().give_back(step)

    monkeypatch.setattr(prefetch, "SlotRing", Spoiling)
    source = sampler(files[2].plain)
    with PrefetchLoader(source, CPU, "mmap", workers, 0, 9) as arriving:
        for batch, expected in zip(arriving, by_hand(source, files[2].images, 0, 9), strict=True):
            time.sleep(0.003)  # the threads fill all slots that they may
            assert same([batch], [expected])
    assert taken == list(range(9))


# ---- the mode ----


@pytest.mark.parametrize("mode", ["mmap", "h5py"])
def test_a_mode_that_is_asked_for_is_taken(files, mode):
    assert resolve_mode(mode, sampler(files[2].plain), CPU, 10) == (mode, "as asked")
    assert resolve_mode(mode, sampler(files[2].plain), CUDA, 10) == (mode, "as asked")


def test_auto_maps_on_a_cpu(files):
    assert resolve_mode("auto", sampler(files[2].plain), CPU, 10**9) == ("mmap", "the page cache keeps what is used")


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_auto_reads_through_h5py_what_cannot_be_mapped(files, device):
    path = files[2].packed.path
    mode, why = resolve_mode("auto", sampler(files[2].packed), device, 10)
    assert mode == "h5py"
    assert why == f"/lr/0 is compressed (gzip); `rdn-fast prepare --repack {path} NEW.h5` makes it fast"


@pytest.mark.parametrize("mode", ["mmap", "resident"])
def test_a_mode_that_needs_contiguous_pixels_is_refused_without_them(files, mode):
    pairs = files[2].packed
    for ask in (
        lambda: check_mode(mode, sampler(pairs), None),
        lambda: resolve_mode(mode, sampler(pairs), CPU, 10),
        lambda: PrefetchLoader(sampler(pairs), CPU, mode, 1, 0, 10),
    ):
        with pytest.raises(UserError) as caught:
            ask()
        message = str(caught.value)
        assert message.startswith(
            f"{pairs.path}: --data-mode {mode} needs contiguous pixels, but /lr/0 is compressed (gzip); "
        )
        assert f"`rdn-fast prepare --repack {pairs.path} NEW.h5`" in message
        assert "--data-mode h5py" in message


@pytest.mark.parametrize("mode", ["auto", *MODES])
def test_contiguous_pixels_are_refused_by_no_mode(files, mode):
    check_mode(mode, sampler(files[2].plain), CPU)
    if mode not in ("mmap", "resident"):
        check_mode(mode, sampler(files[2].packed), CPU)


class Large(NamedTuple):
    """A sampler, as far as resolve_mode() looks at it."""

    pairs: object
    batch_size: int
    patch_bytes: int
    world: int = 1


class LargePairs(NamedTuple):
    path: str
    size: int
    scale: int
    unmappable: None = None


GB = 10**9
ENOUGH = 10**6  # steps


def large(size: int) -> Large:
    return Large(LargePairs("DIV2K_x2.h5", size, 2), 16, 3 * (32**2 + 64**2))


@pytest.mark.parametrize(
    ("share", "mode"),
    [(0.05, "resident"), (prefetch.RESIDENT_SHARE, "resident"), (prefetch.RESIDENT_SHARE + 0.001, "mmap"), (2, "mmap")],
)
def test_auto_keeps_on_an_accelerator_what_is_small_beside_its_free_memory(monkeypatch, share, mode):
    monkeypatch.setattr(devices, "free_memory", lambda device: {CUDA: 80 * GB}[device])
    chosen, why = resolve_mode("auto", large(int(share * 80 * GB)), CUDA, ENOUGH)
    assert chosen == mode
    more = "less" if mode == "resident" else "more"
    assert why == f"its {share * 80:.1f} GB are {more} than 40% of the device's free 80.0 GB"


def test_auto_keeps_nothing_that_a_short_run_will_not_use(monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda device: 80 * GB)
    a_step = 16 * 3 * 32**2 * 5  # bytes: patches of 32 x 32 LR and 64 x 64 HR pixels
    assert resolve_mode("auto", large(100 * a_step), CUDA, 100)[0] == "resident"
    assert resolve_mode("auto", large(100 * a_step), CUDA, 99) == ("mmap", "this run needs 24.3 MB of its 24.6 MB")


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_resident_that_does_not_fit_is_refused(monkeypatch, device):
    monkeypatch.setattr(devices, "free_memory", lambda device: 3 * GB)
    assert resolve_mode("resident", large(3 * GB), device, 1) == ("resident", "as asked")
    with pytest.raises(UserError) as caught:
        resolve_mode("resident", large(5 * GB), device, 1)
    needs = "needs 5.0 GB of memory, and 3.0 GB are free"
    assert str(caught.value) == f"DIV2K_x2.h5: --data-mode resident {needs}; give --data-mode mmap"


@pytest.mark.parametrize(
    ("mode", "workers", "threads", "slots"),
    [("mmap", 1, "1 fill thread", 4), ("resident", 0, "0 fill threads", 3), ("h5py", 3, "3 fill threads", 6)],
)
def test_about_says_the_mode_and_what_it_holds(files, mode, workers, threads, slots):
    source = PrefetchLoader(sampler(files[2].plain), CPU, mode, workers, 0, 50)
    held = slots * 6 * 4 * 3 * PATCH**2 * 5  # bytes: floats of LR and HR
    assert source.about == f"data: {mode} (as asked); {threads}, {slots} slots, {held / 1e6:.1f} MB"
    assert source.waited == 0


def test_a_short_run_holds_no_more_slots_than_steps(files):
    assert "1 fill thread, 2 slots, " in PrefetchLoader(sampler(files[2].plain), CPU, "mmap", 1, 5, 7).about


# ---- waiting ----


def waited(sampler: PatchSampler, kind: type[PrefetchLoader], workers: int, pause: float, steps: int = 30) -> float:
    """Return the share of the time after the first batch for which a caller waits who works `pause` seconds a batch."""
    with kind(sampler, CPU, "mmap", workers, 0, steps + 1) as source:
        next(source)
        first, began = source.waited, time.perf_counter()
        for _ in source:
            time.sleep(pause)
        return (source.waited - first) / (time.perf_counter() - began)


def slow(seconds: float) -> type[PrefetchLoader]:
    """Return a loader that fills each slot for so long."""

    class Slow(PrefetchLoader):
        def _fill(self, step, slot):
            time.sleep(seconds)
            super()._fill(step, slot)

    return Slow


PAUSES = (0.02, 0.04, 0.08, 0.16, 0.32)  # the longer ones only where a busy machine makes the shorter ones longer


@any_workers
def test_waiting_for_slow_threads_is_counted(files, workers):
    assert any(waited(sampler(files[2].plain), slow(pause), workers, 0) > 0.8 for pause in PAUSES)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_caller_with_enough_to_do_does_not_wait(files, workers):
    assert any(waited(sampler(files[2].plain), PrefetchLoader, workers, pause) < 0.1 for pause in PAUSES)


def test_one_slow_thread_keeps_even_a_slow_caller_waiting(files):
    assert any(waited(sampler(files[2].plain), slow(pause), 1, pause / 2) > 0.2 for pause in PAUSES)


# ---- the end ----


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize("workers", [1, 3])
@all_modes
def test_leaving_in_the_middle_leaves_no_thread(files, mode, workers, error):
    before = set(threading.enumerate())

    def run():
        with PrefetchLoader(sampler(files[2].plain), CPU, mode, workers, 0, 100) as source:
            next(source)
            assert len(set(threading.enumerate()) - before) == workers
            next(source)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    assert set(threading.enumerate()) == before


# ---- files that change ----


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5000)


def to_the_end(pairs: PairedH5, mode: str, workers: int, change) -> tuple[int, BaseException | None]:
    """How many batches come after the file was changed, and the error that ends them."""
    after = 0

    def run():
        nonlocal after
        with PrefetchLoader(sampler(pairs), CPU, mode, workers, 0, 40) as source:
            next(source)
            change(pairs.path)
            for _ in source:
                after += 1

    error = Caller(run).ended().error
    return after, error


changes = pytest.mark.parametrize(
    "change", [overwrite, cut_short, os.utime], ids=["overwritten", "cut short", "touched"]
)


@pytest.mark.parametrize("mode", ["mmap", "h5py"])
@any_workers
@changes
def test_a_file_that_is_changed_in_place_ends_the_run_at_once(own_file, mode, workers, change):
    after, error = to_the_end(PairedH5(own_file, 2), mode, workers, change)
    assert isinstance(error, Failure)
    assert str(error).startswith(f"{own_file}: was changed while it was in use; ")
    assert "\n" not in str(error)
    assert after <= prefetch.AHEAD + workers  # what was there already


@pytest.mark.parametrize("mode", ["mmap", "h5py"])
def test_a_batch_of_a_file_that_changes_meanwhile_is_not_given(own_file, monkeypatch, mode):
    def while_it_changes(*arguments):
        overwrite(own_file)
        patches.gather_to_float(*arguments)

    monkeypatch.setattr(prefetch, "gather_to_float", while_it_changes)
    with (
        PrefetchLoader(sampler(PairedH5(own_file, 2)), CPU, mode, 0, 0, 10) as source,
        pytest.raises(Failure, match="was changed while it was in use"),
    ):
        next(source)


@changes
def test_what_is_resident_needs_the_file_no_more(own_file, change):
    assert to_the_end(PairedH5(own_file, 2), "resident", 1, change) == (39, None)


@pytest.mark.skipif(patches._library() is None, reason="needs a C compiler")
@any_workers
def test_a_file_that_is_cut_short_while_it_is_read_ends_the_run(own_file, monkeypatch, workers):
    monkeypatch.setattr(PairedH5, "check", lambda self: None)  # it is cut behind the check's back
    _, error = to_the_end(PairedH5(own_file, 2), "mmap", workers, lambda path: os.truncate(path, 4096))
    assert isinstance(error, Failure)
    assert str(error).startswith(f"{own_file}: was cut short while it was in use")


def test_a_file_that_is_cut_short_before_it_is_resident(own_file):
    pairs = PairedH5(own_file, 2)
    cut_short(own_file)
    with pytest.raises(Failure, match="cut short"):
        PrefetchLoader(sampler(pairs), CPU, "resident", 1, 0, 10)


@pytest.mark.parametrize("started", [True, False], ids=["while it is read", "before"])
@any_workers
@all_modes
def test_a_file_put_in_its_place_changes_nothing(files, own_file, make_h5, mode, workers, started):
    pairs = PairedH5(own_file, 2)
    other = make_h5(own_file.with_name("new.h5"), random_pairs(20, 2)[::-1])
    if not started:
        other.replace(own_file)
    source = sampler(pairs)
    found = []
    with PrefetchLoader(source, CPU, mode, workers, 0, 12) as arriving:
        for batch in arriving:
            found.append(batch._replace(lr=batch.lr.clone(), hr=batch.hr.clone()))
            if started and len(found) == 1:
                other.replace(own_file)
    assert same(found, by_hand(source, files[2].images, 0, 12))


# ---- other processes ----

# For each mode: forks while threads fill; parent and child must both see the right batches.
_FORK = """
import os, signal, sys, time
from cutting import CPU, PATCH, same, stream
from rdn_fast.data.prefetch import PrefetchLoader
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.sampler import PatchSampler

pairs = PairedH5(sys.argv[1], 2)
source = PatchSampler(pairs, PATCH, 6, 9)
expected = stream(source, "mmap", 0, 0, 24)
for mode in ("mmap", "resident", "h5py"):
    with PrefetchLoader(source, CPU, mode, 3, 0, 24) as arriving:
        for step, batch in enumerate(arriving):
            assert same([batch], expected[step : step + 1]), (mode, step)
            if step % 6 == 1:
                child = os.fork()
                if not child:
                    signal.alarm(20)
                    ours = stream(source, mode, 2, step, 24)
                    os._exit(0 if same(ours, expected[step:]) else 1)
                if step % 12 == 1:  # else the parent goes on meanwhile
                    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    assert status == 0, (mode, step, status)
while True:
    try:
        status = os.waitstatus_to_exitcode(os.wait()[1])
    except ChildProcessError:
        break
    assert status == 0, status
"""

# What anonymous memory two deliveries of a large file take: of a few slots, and of the whole file.
_MEMORY = """
import sys
from pathlib import Path
import torch
from cutting import same, stream
from rdn_fast.data.prefetch import PrefetchLoader
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.sampler import PatchSampler

def held():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

source = PatchSampler(PairedH5(sys.argv[1], 2), 32, 16, 0)
def grown(mode, steps):
    with PrefetchLoader(source, torch.device("cpu"), mode, 2, 0, steps) as arriving:
        before, most = held(), 0
        for batch in arriving:
            most = max(most, held())
    return most - before

print(source.pairs.size, grown("mmap", 20), grown("mmap", 300))
before = held()
with PrefetchLoader(source, torch.device("cpu"), "resident", 0, 0, 1) as arriving:
    print(held() - before)
assert same(stream(source, "resident"), stream(source, "mmap"))  # every image, out of all blocks that were read
"""


def python(script: str, *arguments) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_fork_while_threads_fill(files):
    python(_FORK, files[2].plain.path)


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_a_spawned_process_gives_the_same(files, tmp_path, name):
    source = sampler(getattr(files[2], name), rank=1, world=2)
    assert source.share(3).total  # its memory of plans is in use
    result = tmp_path / "stream.pt"
    process = multiprocessing.get_context("spawn").Process(target=save_stream, args=(result, source, "auto", 1, 0, 9))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert same([Batch(*fields) for fields in torch.load(result)], by_hand(source, files[2].images, 0, 9))


def test_memory_does_not_grow_with_the_file(tmp_path):
    """60 pairs of 500 x 500 LR pixels, 225 MB; most are never written, and need no disk."""
    path, early = tmp_path / "large.h5", h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        for group, size in (("lr", 500), ("hr", 1000)):
            space = h5py.h5s.create_simple((size, size, 3))
            for key in range(60):
                h5py.h5d.create(file.require_group(group).id, str(key).encode(), h5py.h5t.STD_U8LE, space, early)
                if key % 10 == 5:
                    file[group][str(key)][:] = np.random.default_rng(key).integers(
                        0, 256, (size, size, 3), dtype=np.uint8
                    )
    size, first, grown, resident = map(int, python(_MEMORY, path).split())
    assert size > 200e6
    slots = 5 * 16 * 3 * 32**2 * 5 * 4  # bytes of floats
    assert first < slots + 4e6
    assert grown < slots + 4e6
    assert resident > size  # what a copy of the file would look like


def test_a_file_that_changes_while_it_becomes_resident_is_not_kept(own_file):
    pairs = PairedH5(own_file, 2)
    read_into = PairedH5.read_into

    def changing(self, buffer, start):
        read_into(self, buffer, start)
        os.utime(own_file, (1, 1))

    with (
        mock.patch.object(PairedH5, "read_into", changing),
        pytest.raises(Failure, match="was changed while it was in use"),
    ):
        PrefetchLoader(sampler(pairs), CPU, "resident", 1, 0, 10)


@pytest.mark.parametrize("c", [True, False], ids=["C", "tensors"])
def test_the_kernel_is_told_to_read_no_more_where_it_is_told_what_to_read(monkeypatch, own_file, c):
    if not c:
        monkeypatch.setattr(patches, "_library", lambda: None)
    told = []

    def tell(self):
        told.append(self)

    with mock.patch.object(PairedH5, "expect_random_access", tell):
        PrefetchLoader(sampler(pairs := PairedH5(own_file, 2)), CPU, "mmap", 1, 0, 10)
    assert told == [pairs] * c


def test_ranks_share_the_memory_of_a_host(monkeypatch, own_file):
    pairs = PairedH5(own_file, 2)
    monkeypatch.setattr(devices, "free_memory", lambda device: 3 * pairs.size)
    assert resolve_mode("resident", sampler(pairs, rank=1, world=3), CPU, 1) == ("resident", "as asked")
    with pytest.raises(UserError, match="--data-mode resident"):
        resolve_mode("resident", sampler(pairs, rank=1, world=4), CPU, 1)

"""Patches out of bytes: the same bits in C, by tensor operations and by hand; bounds; files that are truncated."""

import ctypes
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from cutting import cut, floats
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ROOT
from waiting import PATIENCE

from rdn_fast.data import augment, patches
from rdn_fast.data.augment import Plan
from rdn_fast.data.patches import CutShort, crop, gather_strided_to_float, gather_to_float, read_ahead

PAGE = mmap.PAGESIZE
GUARD = 64  # values on either side of `out` that must stay as they are
in_c = pytest.mark.skipif(patches._library() is None, reason="needs a C compiler")
both_ways = pytest.mark.parametrize("c", [pytest.param(True, marks=in_c), False], ids=["C", "tensors"])


class Cuts:
    """Patches of `size`, in LR pixels, out of images that lie one after the other, the last to the last byte."""

    def __init__(self, images: list[np.ndarray], index: list[int], plan: Plan, size: int, before: int = 0):
        self.images, self.index, self.plan, self.size = images, index, plan, size
        self.flat = np.concatenate([np.full(before, 99, np.uint8), *(image.reshape(-1) for image in images)])
        begin = before + np.cumsum([0, *(image.size for image in images)])[index]
        self.pitch = np.array([3 * images[i].shape[1] for i in index])
        self.start = augment.start_address(plan, begin, self.pitch, 1)
        self.where = self.start, self.pitch, plan.orientation

    def upright(self) -> np.ndarray:
        """What crop() must give, by hand."""
        straight = self.plan._replace(orientation=np.zeros(len(self.index), np.uint8))
        return np.stack([cut(self.images[i], straight, k, self.size, 1) for k, i in enumerate(self.index)])

    def floats(self) -> torch.Tensor:
        """What gather_to_float() must give, by hand."""
        return floats([cut(self.images[i], self.plan, k, self.size, 1) for k, i in enumerate(self.index)])

    def check(self) -> None:
        """Both functions give what they must, into memory full of other values, and write nothing beside it."""
        n, size = len(self.index), self.size
        flat, count = torch.from_numpy(self.flat), n * size * size * 3

        pixels = torch.randint(0, 256, (count + 2 * GUARD,), dtype=torch.uint8)
        before = pixels.clone()
        crop(flat, self.start, self.pitch, pixels[GUARD:-GUARD].view(n, size, size, 3))
        assert pixels[GUARD:-GUARD].numpy().tobytes() == self.upright().tobytes()
        before[GUARD:-GUARD] = pixels[GUARD:-GUARD]
        assert torch.equal(pixels, before)

        values = torch.full((count + 2 * GUARD,), torch.nan)
        inside = values[GUARD:-GUARD]
        out = inside.view(n, size, size, 3).permute(0, 3, 1, 2)
        gather_to_float(flat, *self.where, out)
        assert torch.equal(out, self.floats())
        assert values[:GUARD].isnan().all()
        assert values[-GUARD:].isnan().all()


def all_cuts(height: int, width: int, size: int, **options) -> Cuts:
    """Every position and variant of a patch in two images of this size."""
    images = list(np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8))
    ways = itertools.product(range(2), range(height - size + 1), range(width - size + 1), range(8))
    index, top, left, orientation = map(np.array, zip(*ways, strict=True))
    return Cuts(images, list(index), Plan(top, left, orientation.astype(np.uint8)), size, **options)


@pytest.fixture
def way(c, monkeypatch):
    if not c:
        monkeypatch.setattr(patches, "_library", lambda: None)


# ---- the right bits ----


@both_ways
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (1, 1, 1),
        (5, 1, 1),
        (1, 5, 1),
        (4, 3, 1),
        (2, 2, 2),
        (5, 5, 5),
        (7, 5, 5),
        (5, 7, 5),
        (7, 5, 4),
        (6, 9, 2),
        (11, 8, 7),
        (17, 17, 16),
    ],
)
def test_all_places_and_variants(way, height, width, size):
    all_cuts(height, width, size).check()


def test_tensors_write_contiguous_planes_too():
    cuts = all_cuts(6, 9, 5)
    out = torch.full((len(cuts.index), 3, 5, 5), torch.nan)
    gather_strided_to_float(torch.from_numpy(cuts.flat), torch.from_numpy(augment.strides(*cuts.where, 5)), out)
    assert torch.equal(out, cuts.floats())


@st.composite
def any_cuts(draw) -> Cuts:
    size = draw(st.integers(1, 24))
    edge = st.integers(size, size + 12)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = [rng.integers(0, 256, (draw(edge), draw(edge), 3), dtype=np.uint8) for _ in range(draw(st.integers(1, 4)))]
    index = rng.integers(0, len(images), draw(st.integers(1, 9)))
    top, left = (rng.integers(0, [images[i].shape[axis] - size + 1 for i in index]) for axis in (0, 1))
    return Cuts(
        images,
        list(index),
        Plan(top, left, rng.integers(0, 8, len(index), dtype=np.uint8)),
        size,
        before=draw(st.integers(0, 9)),
    )


@both_ways
@given(cuts=any_cuts())
@settings(deadline=None)
def test_any_images(c, cuts):
    with pytest.MonkeyPatch.context() as patch:
        if not c:
            patch.setattr(patches, "_library", lambda: None)
        cuts.check()


@both_ways
def test_every_value_of_a_byte(way):
    values = torch.arange(256, dtype=torch.uint8)
    out = torch.full((254, 3, 1, 1), torch.nan)
    gather_to_float(values, np.arange(254), np.full(254, 3), np.zeros(254, np.uint8), out)
    expected = values.numpy().astype(np.float32) / np.float32(255)
    for channel in range(3):
        assert out[:, channel, 0, 0].numpy().tobytes() == expected[channel : channel + 254].tobytes()


def test_a_part_of_a_batch():
    """A partial batch is the first patches of a slot, and the first columns of its strides."""
    cuts = all_cuts(6, 5, 4)
    flat, n = torch.from_numpy(cuts.flat), len(cuts.index)
    strides = torch.zeros(2, 3, n + 7, dtype=torch.int64)
    strides[1, :, :n] = torch.from_numpy(augment.strides(*cuts.where, 4))
    for gather in (
        lambda out: gather_strided_to_float(flat, strides[1, :, :n], out),
        lambda out: gather_to_float(flat, *cuts.where, out),
    ):
        slot = torch.full((n + 7, 3, 4, 4), torch.nan).contiguous(memory_format=torch.channels_last)
        gather(slot[:n])
        assert torch.equal(slot[:n], cuts.floats())
        assert slot[n:].isnan().all()


# ---- nothing outside of the bytes ----

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_MAP_FIXED = 0x10


@pytest.fixture
def walled(tmp_path):
    """walled(n, at_end): n bytes of memory, uint8, that end (or begin) at a page that raises CutShort when touched.

    That page is of a map of a file, behind the file's end.
    """
    (tmp_path / "empty").touch()
    file = os.open(tmp_path / "empty", os.O_RDWR)

    def make(n: int, at_end: bool) -> torch.Tensor:
        inside = -(-n // PAGE) * PAGE
        access = mmap.PROT_READ | mmap.PROT_WRITE
        base = _libc.mmap(None, inside + 2 * PAGE, access, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        for wall in (base, base + PAGE + inside):
            assert _libc.mmap(wall, PAGE, access, mmap.MAP_SHARED | _MAP_FIXED, file, 0) == wall
        return torch.frombuffer(
            (ctypes.c_ubyte * n).from_address(base + PAGE + (inside - n if at_end else 0)), dtype=torch.uint8
        )

    yield make
    os.close(file)


@in_c
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "begin"])
@pytest.mark.parametrize(("height", "width", "size"), [(1, 1, 1), (5, 7, 1), (5, 5, 5), (9, 6, 4), (40, 37, 33)])
def test_c_reads_nothing_outside_of_the_bytes(walled, height, width, size, at_end):
    cuts = all_cuts(height, width, size)
    flat = walled(len(cuts.flat), at_end)
    flat.copy_(torch.from_numpy(cuts.flat))
    n = len(cuts.index)
    pixels = torch.zeros(n, size, size, 3, dtype=torch.uint8)
    crop(flat, cuts.start, cuts.pitch, pixels)
    assert pixels.numpy().tobytes() == cuts.upright().tobytes()
    out = torch.zeros(n, 3, size, size).contiguous(memory_format=torch.channels_last)
    gather_to_float(flat, *cuts.where, out)
    assert torch.equal(out, cuts.floats())
    read_ahead(flat, cuts.start, cuts.pitch, size)
    # The walls stand: one byte further is CutShort.
    step = 1 if at_end else -1
    with pytest.raises(CutShort):
        crop(flat, cuts.start + step, cuts.pitch, pixels)
    with pytest.raises(CutShort):
        gather_to_float(flat, cuts.start + step, *cuts.where[1:], out)


@in_c
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "begin"])
def test_c_writes_nothing_outside_of_out(walled, at_end):
    cuts = all_cuts(9, 6, 5)
    flat, n = torch.from_numpy(cuts.flat), len(cuts.index)
    pixels = walled(n * 75, at_end).view(n, 5, 5, 3)
    crop(flat, cuts.start, cuts.pitch, pixels)
    assert pixels.numpy().tobytes() == cuts.upright().tobytes()
    out = walled(n * 300, at_end).view(torch.float32).view(n, 5, 5, 3).permute(0, 3, 1, 2)
    gather_to_float(flat, *cuts.where, out)
    assert torch.equal(out, cuts.floats())


# ---- files that are cut short ----


@pytest.fixture
def shortened(tmp_path):
    """The bytes of a map of 8 pages, of which the file behind holds no more than two."""
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 8 * PAGE, dtype=np.uint8).tobytes())
    with path.open("r+b") as file:
        flat = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)
    os.truncate(path, 2 * PAGE)
    return flat


def cut_at(flat: torch.Tensor, address: int, size: int = 16) -> None:
    """crop() and gather_to_float() of one patch at the address; each CutShort, or neither."""
    start, pitch = np.array([address]), np.array([3 * size])
    pixels, out = torch.empty(1, size, size, 3, dtype=torch.uint8), torch.empty(1, size, size, 3).permute(0, 3, 1, 2)
    upright = np.zeros(1, np.uint8)
    expected = address + 3 * size * size > 2 * PAGE
    for what in (
        lambda: crop(flat, start, pitch, pixels),
        lambda: gather_to_float(flat, start, pitch, upright, out),
    ):
        try:
            what()
        except CutShort:
            assert expected
        else:
            assert not expected
    if not expected:
        patch = flat[address : address + 3 * size * size].view(1, size, size, 3)
        assert torch.equal(pixels, patch)
        assert torch.equal(out, patch.permute(0, 3, 1, 2) / 255)


@in_c
def test_a_file_that_is_cut_short_ends_the_call_only(shortened):
    for address in (0, 5 * PAGE, 2 * PAGE - 768, 2 * PAGE - 767, 8 * PAGE - 768, 10):
        cut_at(shortened, address)
    starts = np.array([0, PAGE, 3 * PAGE])  # the first patches of a batch are still there
    with pytest.raises(CutShort):
        crop(shortened, starts, np.full(3, 48), torch.empty(3, 16, 16, 3, dtype=torch.uint8))
    read_ahead(shortened, starts, np.full(3, 48), 16)


@in_c
def test_threads_that_meet_the_end_do_not_disturb_the_others(shortened):
    wrong = []

    def work(seed):
        try:
            for address in np.random.default_rng(seed).integers(0, 8 * PAGE - 768, 300):
                cut_at(shortened, int(address))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Forks a child for every case, and prints how each ended.
_CHILDREN = """
import ctypes, faulthandler, json, mmap, os, signal, threading
from rdn_fast.data import patches

def touch_the_end():
    with open("cut", "wb") as file:
        file.write(bytes(4 * mmap.PAGESIZE))
    with open("cut", "r+b") as file:
        view = mmap.mmap(file.fileno(), 0)
    os.truncate("cut", 10)
    ctypes.string_at(ctypes.addressof(ctypes.c_char.from_buffer(view)) + 2 * mmap.PAGESIZE, 1)

def fault():
    patches._library()
    touch_the_end()

def traced():
    faulthandler.enable()
    fault()

def traced_after():
    patches._library()
    faulthandler.enable()
    touch_the_end()

def in_another_thread():
    patches._library()
    thread = threading.Thread(target=touch_the_end)
    thread.start()
    thread.join()

def killed():
    patches._library()
    os.kill(os.getpid(), signal.SIGBUS)
    os._exit(0)

def first_used_by_threads():
    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=lambda: (barrier.wait(), patches._library())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    touch_the_end()

ended = {}
for case in (fault, traced, traced_after, in_another_thread, killed, first_used_by_threads):
    child = os.fork()
    if not child:
        signal.alarm(2)
        os.dup2(os.open(case.__name__, os.O_WRONLY | os.O_CREAT), 2)
        case()
        os._exit(0)
    ended[case.__name__] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """{case: (exit code, stderr)} of processes that meet a SIGBUS which is none of ours."""
    folder = tmp_path_factory.mktemp("children")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", _CHILDREN],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return {case: (code, (folder / case).read_text()) for case, code in json.loads(run.stdout).items()}


@in_c
@pytest.mark.parametrize(
    "case", ["fault", "traced", "traced_after", "in_another_thread", "killed", "first_used_by_threads"]
)
def test_a_bus_error_that_is_not_ours_still_kills(children, case):
    code, stderr = children[case]
    assert code == -signal.SIGBUS, stderr
    if "traced" in case:
        assert "Fatal Python error: Bus error" in stderr
        assert "in touch_the_end" in stderr
    else:
        assert stderr == ""

"""What is cut and how it is turned, that it depends on nothing else, and that LR and HR stay together on the way."""

import itertools
import threading

import numpy as np
import pytest
import torch

from rdn_fast.data import augment
from rdn_fast.data.augment import Plan
from rdn_fast.data.h5 import Pairs
from rdn_fast.data.loader import Loader, to_float
from rdn_fast.data.ordered import ordered_map
from rdn_fast.errors import UserError

PATCH = 6
CPU = torch.device("cpu")


def chi_square(counts) -> float:
    """Of observed counts against equal shares; its mean is about len(counts) - 1."""
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def nearest(lr: np.ndarray, scale: int) -> np.ndarray:
    """Each pixel as a scale x scale square."""
    return lr.repeat(scale, axis=0).repeat(scale, axis=1)


def same_plan(a: Plan, b: Plan) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# ---- order ----


@pytest.mark.parametrize("n", [1, 2, 97])
def test_order_is_a_permutation(n):
    for seed, epoch in itertools.product((0, 123, 2**63), (0, 1, 10**6)):
        np.testing.assert_array_equal(np.sort(augment.order(seed, epoch, n)), np.arange(n))


def test_order_differs_between_epochs_and_seeds_and_is_repeatable():
    orders = {tuple(augment.order(seed, epoch, 50)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    np.testing.assert_array_equal(augment.order(3, 4, 50), augment.order(3, 4, 50))


def test_every_image_comes_at_every_place_equally_often():
    counts = np.zeros((8, 8))
    for epoch in range(4000):
        counts[np.arange(8), augment.order(123, epoch, 8)] += 1
    # 49 degrees of freedom: 99.99 % of uniform draws stay below 97.
    assert chi_square(counts) < 97


# ---- plan ----


def sizes_of(index, patch=PATCH):
    """LR sizes by image number, from exactly the patch to 9 pixels more."""
    return np.stack([patch + index % 10, patch + (index // 10) % 10], axis=1)


def test_a_patch_does_not_depend_on_its_batch():
    index = np.arange(200)
    whole = augment.plan(7, 3, index, sizes_of(index), PATCH)
    rng = np.random.default_rng(0)
    for batch in ([0], [199], [5, 5, 5], index[::-1], rng.permutation(index)[:31], rng.integers(0, 200, 64)):
        chosen = np.asarray(batch)
        part = augment.plan(7, 3, chosen, sizes_of(chosen), PATCH)
        assert same_plan(part, Plan(*(field[chosen] for field in whole)))


@pytest.mark.parametrize("other", [(8, 3), (7, 4)], ids=["seed", "epoch"])
def test_patches_differ_between_seeds_and_epochs(other):
    index = np.arange(400)
    sizes = np.full((400, 2), PATCH + 99)
    a, b = augment.plan(7, 3, index, sizes, PATCH), augment.plan(*other, index, sizes, PATCH)
    assert np.mean((a.top == b.top) & (a.left == b.left)) < 0.01
    for x, y in zip(a[2:], b[2:], strict=True):
        assert 0.4 < np.mean(x == y) < 0.6


def test_crops_lie_inside_and_reach_both_ends():
    index = np.arange(20_000)
    sizes = sizes_of(index)
    plan = augment.plan(1, 0, index, sizes, PATCH)
    for start, size in ((plan.top, sizes[:, 0]), (plan.left, sizes[:, 1])):
        assert (start >= 0).all()
        assert (start + PATCH <= size).all()
        assert (start[size == PATCH] == 0).all()  # images exactly as large as the patch
        for edge in range(PATCH, PATCH + 10):
            assert set(start[size == edge]) == set(range(edge - PATCH + 1))


@pytest.mark.parametrize("vary", ["index", "epoch", "seed"])
def test_variants_and_positions_are_uniform_and_independent(vary):
    n, positions = 8_000, 5
    index = np.arange(n)
    sizes = np.full((n, 2), PATCH + positions - 1)
    if vary == "index":
        plan = augment.plan(123, 0, index, sizes, PATCH)
    else:  # the same image again and again
        one, size = np.array([17]), sizes[:1]
        plans = [augment.plan(123, k, one, size, PATCH) if vary == "epoch" else augment.plan(k, 0, one, size, PATCH) for k in range(n)]
        plan = Plan(*(np.concatenate(fields) for fields in zip(*plans, strict=True)))
    variant = plan.flip_vertical * 4 + plan.flip_horizontal * 2 + plan.transpose
    counts = np.zeros((positions, positions, 8))
    np.add.at(counts, (plan.top, plan.left, variant), 1)
    # Of uniform draws, 99.99 % stay below these bounds for 7, 4, 24 and 199 degrees of freedom.
    assert chi_square(counts.sum(axis=(0, 1))) < 30
    assert chi_square(counts.sum(axis=(1, 2))) < 24
    assert chi_square(counts.sum(axis=(0, 2))) < 24
    assert chi_square(counts.sum(axis=2)) < 60
    assert chi_square(counts) < 283


# ---- cut ----


def one_plan(top=0, left=0, vertical=False, horizontal=False, transpose=False) -> Plan:
    return Plan(*(np.array([value]) for value in (top, left, vertical, horizontal, transpose)))


def test_cut_gives_the_eight_variants_of_the_planned_window():
    image = np.arange(9 * 8 * 3, dtype=np.uint8).reshape(9, 8, 3)
    window = image[2:5, 4:7]
    seen = set()
    for vertical, horizontal, transpose in itertools.product((False, True), repeat=3):
        patch = augment.cut(image, one_plan(2, 4, vertical, horizontal, transpose), 0, 3, 1)
        for y, x in itertools.product(range(3), repeat=2):
            row, column = (x, y) if transpose else (y, x)  # undo the transpose, then the flips
            np.testing.assert_array_equal(patch[y, x], window[2 - row if vertical else row, 2 - column if horizontal else column])
        seen.add(patch.tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_and_hr_patches_correspond(scale):
    rng = np.random.default_rng(scale)
    lr = rng.integers(0, 256, (13, 11, 3), dtype=np.uint8)
    hr = nearest(lr, scale)
    index = np.arange(100)
    plan = augment.plan(5, 0, index, np.full((100, 2), lr.shape[:2]), PATCH)
    for k in index:
        small, large = augment.cut(lr, plan, k, PATCH, 1), augment.cut(hr, plan, k, PATCH, scale)
        assert small.shape == (PATCH, PATCH, 3)
        np.testing.assert_array_equal(large, nearest(small, scale))


# ---- loader ----


def random_pairs(count, scale, seed=0):
    """LR images of PATCH to PATCH + 9 pixels, whose red holds their number everywhere; HR is LR repeated."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        lr = rng.integers(0, 256, (*rng.integers(PATCH, PATCH + 10, 2), 3), dtype=np.uint8)
        lr[..., 0] = i  # red tells which image a patch is from
        pairs.append((lr, nearest(lr, scale)))
    return pairs


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_h5):
    """{scale: Pairs of 20 images}; batches of 6 leave 2 for the last step."""
    folder = tmp_path_factory.mktemp("loader")
    return {scale: Pairs(make_h5(folder / f"x{scale}.h5", random_pairs(20, scale)), scale) for scale in (2, 3, 4)}


def loader(pairs, scale=2, batch_size=6, seed=9, **options) -> Loader:
    return Loader(pairs, scale, PATCH, batch_size, seed, **options)


def batches(loader: Loader, epoch: int = 0, **options) -> list:
    """The epoch's batches, copied as they arrive: whoever keeps one must copy it."""
    return [batch._replace(lr=batch.lr.clone(), hr=batch.hr.clone()) for batch in loader.epoch(epoch, **options)]


def assert_same(a: list, b: list) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.lr, y.lr)
        assert torch.equal(x.hr, y.hr)
        assert (x.count, x.total) == (y.count, y.total)


def images_of(batch) -> list[int]:
    return batch.lr[:, 0, 0, 0].tolist()


def test_every_image_once_per_epoch_in_the_planned_order(files):
    for epoch in (0, 1, 7):
        seen = [i for batch in batches(loader(files[2]), epoch) for i in images_of(batch)]
        assert seen == augment.order(9, epoch, 20).tolist()


def test_patches_are_what_plan_and_cut_say(files):
    pairs = files[2]
    sizes = np.array([lr.shape[:2] for lr in pairs.lr])
    for batch in batches(loader(pairs), 4):
        index = np.array(images_of(batch))
        plan = augment.plan(9, 4, index, sizes[index], PATCH)
        for k, i in enumerate(index):
            np.testing.assert_array_equal(batch.lr[k], augment.cut(pairs.lr[i], plan, k, PATCH, 1))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_batches_hold_corresponding_uint8_patches(files, scale):
    for batch in batches(loader(files[scale], scale)):
        assert batch.lr.dtype == batch.hr.dtype == torch.uint8
        assert batch.lr.shape[1:] == (PATCH, PATCH, 3)
        for small, large in zip(batch.lr.numpy(), batch.hr.numpy(), strict=True):
            np.testing.assert_array_equal(large, nearest(small, scale))


def test_last_partial_batch_is_kept(files):
    source = loader(files[2])
    assert (len(source), source.steps) == (20, 4)
    assert [(len(batch.lr), batch.count, batch.total) for batch in batches(source)] == [(6, 6, 6)] * 3 + [(2, 2, 2)]


def test_number_of_threads_changes_nothing(files):
    expected = batches(loader(files[2], workers=0), 2)
    for workers in (1, 3):
        assert_same(batches(loader(files[2], workers=workers), 2), expected)


def test_epochs_differ(files):
    a, b = (torch.cat([batch.lr for batch in batches(loader(files[2]), epoch)]) for epoch in (0, 1))
    assert not torch.equal(a, b)
    a, b = (torch.cat([batch.lr for batch in batches(loader(files[2], seed=seed))]) for seed in (0, 1))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("workers", [0, 3])
def test_starting_and_stopping_in_the_middle(files, workers):
    whole = batches(loader(files[2], workers=workers), 5)
    source = loader(files[2], workers=workers)
    for start in range(5):
        assert_same(batches(source, 5, start=start), whole[start:])
        for stop in range(start, 5):
            assert_same(batches(source, 5, start=start, stop=stop), whole[start:stop])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_batch_of_one(files, world):
    single = batches(loader(files[2], batch_size=6))
    ranks = [batches(loader(files[2], batch_size=6 // world, rank=rank, world=world)) for rank in range(world)]
    for whole, shares in zip(single, zip(*ranks, strict=True), strict=True):
        assert torch.equal(torch.cat([share.lr[: share.count] for share in shares]), whole.lr)
        assert torch.equal(torch.cat([share.hr[: share.count] for share in shares]), whole.hr)
        assert sum(share.count for share in shares) == whole.total
        for share in shares:
            assert share.total == whole.total
            assert len(share.lr) == len(share.hr) == max(share.count, 1)


def test_rank_with_an_empty_share_gets_one_patch_that_does_not_count(files):
    # 20 = 3 * 6 + 2: in the last step there are two patches for three ranks.
    last = [batches(loader(files[2], batch_size=2, rank=rank, world=3))[-1] for rank in range(3)]
    assert [(batch.count, batch.total) for batch in last] == [(1, 2), (1, 2), (0, 2)]
    assert torch.equal(last[2].lr, last[0].lr)
    assert torch.equal(last[2].hr, last[0].hr)


def test_batch_larger_than_the_set_is_one_step(files):
    (batch,) = batches(loader(files[2], batch_size=64))
    assert (len(batch.lr), batch.count, batch.total) == (20, 20, 20)


def test_images_smaller_than_the_patch_are_left_out_and_named(tmp_path, make_h5):
    sizes = {"0": (PATCH, PATCH), "1": (PATCH - 1, 20), "2": (20, PATCH - 1), "3": (PATCH, 20), "4": (1, 1)}
    images = {name: np.full((*size, 3), int(name), np.uint8) for name, size in sizes.items()}
    pairs = Pairs(make_h5(tmp_path / "a.h5", {name: (lr, nearest(lr, 2)) for name, lr in images.items()}), 2)
    source = loader(pairs)
    assert source.left_out == ["1", "2", "4"]
    assert len(source) == 2
    (batch,) = batches(source)
    assert sorted(images_of(batch)) == [0, 3]


def test_nothing_is_left_out_of_images_that_are_large_enough(files):
    assert loader(files[2]).left_out == []


def test_no_image_as_large_as_the_patch(tmp_path, make_h5):
    lr = [np.zeros((PATCH - 1, 30, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)]
    path = make_h5(tmp_path / "small.h5", [(image, nearest(image, 2)) for image in lr])
    with pytest.raises(UserError) as caught:
        loader(Pairs(path, 2))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "6x6 LR pixels; the largest is 30x5" in message
    assert "--patch-size" in message


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_error_of_a_fill_thread_is_raised_where_its_batch_was_due(files, workers, monkeypatch):
    expected = batches(loader(files[2]))
    order = augment.order(9, 0, 20)
    original, broken = augment.cut, files[2].lr[order[13]]  # the third step of four

    def cut(image, *arguments):
        if image is broken:
            raise OSError("the disk is gone")
        return original(image, *arguments)

    monkeypatch.setattr(augment, "cut", cut)
    arriving = loader(files[2], workers=workers).epoch(0)
    assert_same([next(arriving), next(arriving)], expected[:2])
    with pytest.raises(OSError, match="the disk is gone"):
        next(arriving)


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_leaves_no_thread_behind(files, workers):
    before = set(threading.enumerate())
    iterator = loader(files[2], batch_size=1, workers=workers).epoch(0)
    next(iterator)
    assert set(threading.enumerate()) > before
    iterator.close()
    assert set(threading.enumerate()) == before


# ---- to_float ----


def test_to_float_is_0_to_1_in_channel_planes():
    batch = torch.arange(256, dtype=torch.uint8)[:240].reshape(2, 5, 8, 3)
    batch[1, 4, 7, 2] = 255
    copy = batch.clone()
    floats = to_float(batch, CPU)
    assert floats.dtype == torch.float32
    assert floats.shape == (2, 3, 5, 8)
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, copy)
    for channel in range(3):
        assert torch.equal(floats[:, channel], batch[..., channel].float() / 255)
    assert (floats.min().item(), floats.max().item()) == (0.0, 1.0)


# ---- ordered_map ----


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_ordered_map_keeps_the_order(workers):
    assert list(ordered_map(lambda i: i * i, range(50), workers, ahead=6)) == [i * i for i in range(50)]
    assert list(ordered_map(str, [], workers, ahead=6)) == []


def test_ordered_map_keeps_the_order_when_later_items_finish_first():
    done = [threading.Event() for _ in range(6)]

    def function(i):
        if i % 2 == 0:  # waits for the item after it, which another thread computes
            assert done[i + 1].wait(timeout=30)
        done[i].set()
        return i

    assert list(ordered_map(function, range(6), workers=2, ahead=4)) == list(range(6))


@pytest.mark.parametrize("workers", [1, 3])
def test_ordered_map_looks_ahead_only_so_far(workers):
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield i

    results = ordered_map(lambda i: i, endless(), workers, ahead=5)
    for k in range(20):
        assert next(results) == k
        assert k < len(taken) <= k + 1 + 5
    results.close()


def test_ordered_map_without_workers_computes_in_this_thread_when_asked():
    threads = []

    def function(i):
        threads.append(threading.current_thread())
        return i

    results = ordered_map(function, itertools.count(), workers=0, ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert threads == [threading.current_thread()] * 3


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ordered_map_raises_where_the_result_was_due_and_ends_its_threads(workers):
    before = set(threading.enumerate())

    def function(i):
        if i == 3:
            raise ValueError("three")
        return i

    results = ordered_map(function, range(10), workers, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert set(threading.enumerate()) == before


def test_ordered_map_passes_on_an_error_of_its_source():
    def source():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(ordered_map(lambda i: i, source(), workers=2, ahead=4))

"""What is cut and how it is turned, and that it depends on nothing else."""

import itertools

import numpy as np
import pytest
from cutting import PATCH, cut

from rdn_fast.data import augment
from rdn_fast.data.augment import FLIP_HORIZONTAL, FLIP_VERTICAL, TRANSPOSE, Plan


def chi_square(counts) -> float:
    """Of observed counts against equal shares; its mean is about len(counts) - 1."""
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


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
    for bit in range(3):
        assert 0.4 < np.mean((a.orientation >> bit & 1) == (b.orientation >> bit & 1)) < 0.6


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
        plans = [
            augment.plan(123, k, one, size, PATCH) if vary == "epoch" else augment.plan(k, 0, one, size, PATCH)
            for k in range(n)
        ]
        plan = Plan(*(np.concatenate(fields) for fields in zip(*plans, strict=True)))
    counts = np.zeros((positions, positions, 8))
    np.add.at(counts, (plan.top, plan.left, plan.orientation), 1)
    # Of uniform draws, 99.99 % stay below these bounds for 7, 4, 24 and 199 degrees of freedom.
    assert chi_square(counts.sum(axis=(0, 1))) < 30
    assert chi_square(counts.sum(axis=(1, 2))) < 24
    assert chi_square(counts.sum(axis=(0, 2))) < 24
    assert chi_square(counts.sum(axis=2)) < 60
    assert chi_square(counts) < 283


# ---- addresses and strides ----


def turned(image: np.ndarray, plan: Plan, k: int, patch: int, factor: int, before: int = 0) -> np.ndarray:
    """Patch k by start_address() and strides(), gathered byte by byte from `before` bytes and the image's own."""
    flat = np.concatenate([np.zeros(before, np.uint8), image.reshape(-1)])
    one, size, pitch = Plan(*(field[k : k + 1] for field in plan)), patch * factor, np.array([3 * image.shape[1]])
    start = augment.start_address(one, np.array([before]), pitch, factor)
    first, row, column = augment.strides(start, pitch, one.orientation, size)[:, 0].tolist()
    y, x, channel = np.ogrid[:size, :size, :3]
    return flat[first + y * row + x * column + channel]


def one_plan(top=0, left=0, vertical=False, horizontal=False, transpose=False) -> Plan:
    orientation = FLIP_VERTICAL * vertical + FLIP_HORIZONTAL * horizontal + TRANSPOSE * transpose
    return Plan(np.array([top]), np.array([left]), np.array([orientation], np.uint8))


@pytest.mark.parametrize("how", [cut, turned], ids=["by hand", "by address"])
def test_the_eight_variants_of_the_planned_window(how):
    image = np.arange(9 * 8 * 3, dtype=np.uint8).reshape(9, 8, 3)
    window = image[2:5, 4:7]
    seen = set()
    for vertical, horizontal, transpose in itertools.product((False, True), repeat=3):
        patch = how(image, one_plan(2, 4, vertical, horizontal, transpose), 0, 3, 1)
        for y, x in itertools.product(range(3), repeat=2):
            row, column = (x, y) if transpose else (y, x)  # undo the transpose, then the flips
            np.testing.assert_array_equal(
                patch[y, x], window[2 - row if vertical else row, 2 - column if horizontal else column]
            )
        seen.add(patch.tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_and_hr_patches_correspond(scale):
    rng = np.random.default_rng(scale)
    lr = rng.integers(0, 256, (13, 11, 3), dtype=np.uint8)

    def nearest(patch):  # each pixel as a scale x scale square
        return patch.repeat(scale, axis=0).repeat(scale, axis=1)

    index = np.arange(100)
    plan = augment.plan(5, 0, index, np.full((100, 2), lr.shape[:2]), PATCH)
    for k in index:
        small, large = turned(lr, plan, k, PATCH, 1, before=5), turned(nearest(lr), plan, k, PATCH, scale, before=1000)
        np.testing.assert_array_equal(small, cut(lr, plan, k, PATCH, 1))
        np.testing.assert_array_equal(large, nearest(small))

"""Which patches make which batch: every image once, the same for any number of ranks, from any step on."""

import itertools
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cutting import PATCH, random_pairs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rdn_fast.data import augment
from rdn_fast.data.augment import Plan
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.sampler import PatchSampler, Share
from rdn_fast.errors import UserError

SEED = 9


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, make_h5) -> PairedH5:
    """20 pairs at x2; batches of 6 leave 2 for the last step."""
    return PairedH5(make_h5(tmp_path_factory.mktemp("sampler") / "a.h5", random_pairs(20, 2)), 2)


def sampler(pairs, batch_size=6, seed=SEED, **options) -> PatchSampler:
    return PatchSampler(pairs, PATCH, batch_size, seed, **options)


def epoch(sampler: PatchSampler, number: int = 0) -> list[Share]:
    return [sampler.share(number * sampler.steps + position) for position in range(sampler.steps)]


def joined(shares: list[Share]) -> Share:
    """Join the patches that count to one share."""

    def join(field) -> np.ndarray:
        return np.concatenate([field(share)[..., : share.count] for share in shares], axis=-1)

    plan = Plan(*(join(lambda share, k=k: share.plan[k]) for k in range(len(Plan._fields))))
    count, total = (sum(getattr(share, name) for share in shares) for name in ("count", "total"))
    return Share(join(lambda s: s.images), plan, join(lambda s: s.starts), join(lambda s: s.pitches), count, total)


def same(a: Share, b: Share) -> bool:
    def arrays(share: Share) -> tuple[np.ndarray, ...]:
        return share.images, share.starts, share.pitches, *share.plan

    equal = all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))
    return equal and (a.count, a.total) == (b.count, b.total)


def test_every_image_once_per_epoch_in_the_planned_order_and_cut_as_planned(pairs):
    for number in (0, 1, 7):
        whole = joined(epoch(sampler(pairs), number))
        assert whole.images.tolist() == augment.order(SEED, number, 20).tolist()
        plan = augment.plan(SEED, number, whole.images, pairs.sizes[whole.images], PATCH)
        pitches = np.stack([3 * factor * pairs.sizes[whole.images, 1] for factor in (1, 2)])
        starts = [
            augment.start_address(plan, pairs.offset[group, whole.images], pitches[group], factor)
            for group, factor in enumerate((1, 2))
        ]
        assert same(whole, Share(whole.images, plan, np.stack(starts), pitches, 20, 20))


def test_last_partial_batch_is_kept(pairs):
    source = sampler(pairs)
    assert (len(source), source.steps, source.global_batch) == (20, 4, 6)
    assert [(len(share.images), share.count, share.total) for share in epoch(source)] == [(6, 6, 6)] * 3 + [(2, 2, 2)]


def test_last_partial_batch_is_dropped_when_asked(pairs):
    source = sampler(pairs, drop_last=True)
    assert (len(source), source.steps) == (20, 3)
    for number in range(3):
        kept = epoch(sampler(pairs), number)[:3]
        assert all(map(same, epoch(source, number), kept))
    assert sampler(pairs, batch_size=5, drop_last=True).steps == 4


@pytest.mark.parametrize(("batch_size", "world"), [(21, 1), (7, 3)])
def test_nothing_is_left_when_the_only_batch_is_dropped(pairs, batch_size, world):
    with pytest.raises(
        UserError, match="20 images do not make one batch of 21; give a smaller --batch-size, or leave out --drop-last"
    ):
        sampler(pairs, batch_size, world=world, drop_last=True)


def test_epochs_and_seeds_differ(pairs):
    a, b = (joined(epoch(sampler(pairs), number)) for number in (0, 1))
    assert not np.array_equal(a.images, b.images)
    assert not np.array_equal(a.plan.top[np.argsort(a.images)], b.plan.top[np.argsort(b.images)])
    a, b = (joined(epoch(sampler(pairs, seed=seed))) for seed in (0, 1))
    assert not np.array_equal(a.images, b.images)


def test_a_step_does_not_depend_on_the_steps_asked_before(pairs):
    steps = list(range(16))
    expected = [sampler(pairs).share(step) for step in steps]  # a new sampler each time
    source = sampler(pairs)
    for order in (steps, steps[::-1], random.Random(0).sample(steps, 16)):
        for step in order:
            assert same(source.share(step), expected[step])


def test_threads_may_ask_at_once(pairs):
    source, alone = sampler(pairs), sampler(pairs)
    steps = [random.Random(1).randrange(40) for _ in range(400)]
    with ThreadPoolExecutor(4) as pool:
        for step, share in zip(steps, pool.map(source.share, steps), strict=True):
            assert same(share, alone.share(step))


@settings(deadline=None)
@given(world=st.integers(1, 8), batch_size=st.integers(1, 24), drop_last=st.booleans(), number=st.integers(0, 3))
def test_ranks_share_the_batch_of_one(pairs, world, batch_size, drop_last, number):
    assume(not drop_last or batch_size * world <= 20)
    single = epoch(sampler(pairs, batch_size * world, drop_last=drop_last), number)
    ranks = [
        epoch(sampler(pairs, batch_size, rank=rank, world=world, drop_last=drop_last), number) for rank in range(world)
    ]
    for whole, shares in zip(single, zip(*ranks, strict=True), strict=True):
        assert same(joined(list(shares))._replace(total=whole.total), whole)
        counts = [share.count for share in shares]
        assert max(counts) - min(counts) <= 1
        assert max(counts) <= batch_size
        for share in shares:
            assert share.total == whole.total
            assert len(share.images) == max(share.count, 1)


def test_rank_with_an_empty_share_gets_one_patch_that_does_not_count(pairs):
    # 20 = 3 * 6 + 2: in the last step there are two patches for three ranks.
    last = [epoch(sampler(pairs, batch_size=2, rank=rank, world=3))[-1] for rank in range(3)]
    assert [(share.count, share.total) for share in last] == [(1, 2), (1, 2), (0, 2)]
    assert same(last[2]._replace(count=1), last[0])


def test_batch_larger_than_the_set_is_one_step(pairs):
    (share,) = epoch(sampler(pairs, batch_size=64))
    assert (len(share.images), share.count, share.total) == (20, 20, 20)


def test_images_smaller_than_the_patch_are_left_out_and_named(tmp_path, make_h5):
    sizes = {"0": (PATCH, PATCH), "1": (PATCH - 1, 20), "2": (20, PATCH - 1), "3": (PATCH, 20), "4": (1, 1)}
    images = {
        name: tuple(np.zeros((factor * h, factor * w, 3), np.uint8) for factor in (1, 2))
        for name, (h, w) in sizes.items()
    }
    source = sampler(PairedH5(make_h5(tmp_path / "a.h5", images), 2))
    assert source.left_out == ["1", "2", "4"]
    assert len(source) == 2
    (share,) = epoch(source)
    assert sorted(share.images) == [0, 3]  # their numbers in the file
    assert share.plan.top.tolist() == [0, 0]


def test_nothing_is_left_out_of_images_that_are_large_enough(pairs):
    assert sampler(pairs).left_out == []


def test_no_image_as_large_as_the_patch(tmp_path, make_h5):
    sizes = [(PATCH - 1, 30), (4, 4)]
    path = make_h5(
        tmp_path / "small.h5",
        [tuple(np.zeros((factor * h, factor * w, 3), np.uint8) for factor in (1, 2)) for h, w in sizes],
    )
    with pytest.raises(UserError) as caught:
        sampler(PairedH5(path, 2))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "6x6 LR pixels; the largest is 30x5" in message
    assert "--patch-size" in message


def test_a_loader_that_was_sent_elsewhere_gives_the_same(pairs):
    source = sampler(pairs, batch_size=3, rank=1, world=2)
    source.share(0)
    sent = pickle.loads(pickle.dumps(source))
    for step in itertools.islice(itertools.count(0, 3), 5):
        assert same(sent.share(step), source.share(step))

"""The benchmark of the loaders: its checks, its clocks, its rows."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import loop, results
from bench.cases import loading
from bench.measure import Bench
from bench.timing import Times
from rdn_fast.config import TrainConfig
from rdn_fast.data.h5 import HR, LR, PairedH5

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """The loaders' cases on small files, each in a moment."""
    monkeypatch.setattr(loop, "LR_SIZE", (34, 37))
    for name, value in {
        "IMAGES": 130,
        "BATCH": 16,
        "BATCHES": 2,
        "BASELINES": {name: (*how, (0, 2)) for name, (*how, _) in loading.BASELINES.items()},
        "SPAN": 0.02,
        "TAKEN": 5,
        "OPENED": 120,
    }.items():
        monkeypatch.setattr(loading, name, value)


@pytest.fixture
def contenders(small, tmp_path):
    """{recipe: Loader}."""
    with ExitStack() as running:
        yield {recipe: make() for recipe, make in loading.loaders(tmp_path / "loading.h5", CPU, running).items()}


def at_work() -> tuple[int, int]:
    """How many worker processes and fill threads there are."""
    return len(multiprocessing.active_children()), sum(
        "rdn-fast fill" in thread.name for thread in threading.enumerate()
    )


@pytest.mark.slow
def test_loaders_are_checked_and_timed(small, out, tmp_path):
    bench = Bench("test", CPU, "naive")
    loading.measure(bench, tmp_path, rounds=2)
    rows = {(row.case, row.recipe): row for row in bench.results.rows}
    assert bench.failures == []
    assert sorted(rows) == sorted(
        [
            *(
                ("loading", recipe)
                for recipe in (
                    *("reference 0 workers", "reference 2 workers", "stock 0 workers", "stock 2 workers"),
                    *("rdn_fast", "rdn_fast resident", "reference", "stock"),
                )
            ),
            ("ceiling", "copy of 256 MiB"),
            ("paced loading", "rdn_fast"),
            ("paced loading", "rdn_fast resident"),
            ("opening", "rdn_fast"),
        ]
    )
    for name, column in (("reference", "vs_reference"), ("stock", "vs_stock")):
        best = max((rows["loading", f"{name} {n} workers"] for n in (0, 2)), key=lambda row: row.images_s)
        note = best.recipe.removeprefix(f"{name} ")
        assert rows["loading", name] == dataclasses.replace(best, recipe=name, note=note)
        assert getattr(best, column) == 1
    best = rows["loading", "reference"]
    for (case, _), row in rows.items():
        assert 0 < row.seconds_min <= row.seconds <= row.seconds_max
        if case == "loading":
            assert row.images_s == pytest.approx(loading.BATCHES * loading.BATCH / row.seconds, rel=1e-4)
            assert row.vs_reference == pytest.approx(row.images_s / best.images_s, rel=1e-4)
            assert row.vs_stock == pytest.approx(row.images_s / rows["loading", "stock"].images_s, rel=1e-4)
            assert row.ceiling_share > 0
        elif case == "paced loading":
            assert 0 <= row.waited < 1
            assert 0 < row.images_s < loading.BATCH / loading.PERIOD
    assert "mmap" in rows["loading", "rdn_fast"].note
    assert "resident" in rows["loading", "rdn_fast resident"].note
    assert results.read(bench.results.path) == bench.results.rows
    assert at_work() == (0, 0)


@pytest.mark.parametrize("recipe", ["reference 0 workers", "stock 0 workers", "stock 2 workers"])
def test_baselines_deliver_what_they_should(contenders, recipe):
    loading.check_batches(contenders[recipe].start(), CPU)
    assert at_work()[0] == int(recipe.split()[1])
    contenders["rdn_fast"].start()  # which ends them


def test_only_one_loader_is_at_work(contenders):
    contenders["rdn_fast"].fresh()
    assert at_work() == (0, TrainConfig().num_workers)
    contenders["reference 2 workers"].fresh()
    assert at_work() == (2, 0)
    contenders["reference 0 workers"].fresh()
    assert at_work() == (0, 0)


def shifted(lr, hr):
    return lr, hr.roll(1, dims=3)


def hr_not_mirrored(lr, hr):
    return lr.flip(2), hr


def hr_of_the_next(lr, hr):
    return lr, hr.roll(1, dims=0)


def repeated(lr, hr):
    return tuple(torch.cat([part[:1], part[:-1]]) for part in (lr, hr))


def invented(lr, hr):
    return torch.cat([torch.randint(256, lr[:1].shape) / 255, lr[1:]]), hr


def rounded(lr, hr):
    return lr.bfloat16().float(), hr


def not_scaled(lr, hr):
    return lr * 255, hr * 255


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (shifted, "HR patch is not that"),
        (hr_not_mirrored, "HR patch is not that"),
        (hr_of_the_next, "HR patch is not that"),
        (repeated, "the first epoch's 128 patches come from 120 images"),
        (invented, "16 of 256 LR patches are not in the file"),
        (rounded, "off k/255"),
        (not_scaled, "values are"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_feed_is_noticed(contenders, fault, words):
    ours = contenders["rdn_fast"]
    with pytest.raises(AssertionError, match=words):
        loading.check_batches((fault(lr, hr) for lr, hr in ours.start()), CPU)


def test_a_feed_that_comes_again_is_noticed(contenders):
    ours = contenders["rdn_fast"]
    first = [(lr.clone(), hr.clone()) for lr, hr in itertools.islice(ours.start(), 8)]
    with pytest.raises(AssertionError, match="128 of 256 patches had come before"):
        loading.check_batches(itertools.cycle(first), CPU)


def test_a_feed_that_turns_nothing_is_noticed(contenders, tmp_path):
    pairs = PairedH5(tmp_path / "loading.h5", 2)

    def upright(step):
        images = range(16 * step % 128, 16 * step % 128 + 16)
        places = {i: np.random.randint(3, size=2) for i in images}

        def cut(image, y, x, size):
            return torch.from_numpy(image[y : y + size, x : x + size].copy()).permute(2, 0, 1) / 255

        return (
            torch.stack([cut(pairs.image(group, i), *(factor * places[i]), factor * 32) for i in images])
            for group, factor in ((LR, 1), (HR, 2))
        )

    with pytest.raises(AssertionError, match="turned in 1 of 8 ways"):
        loading.check_batches(map(upright, itertools.count()), CPU)


def test_a_wrong_feed_gets_no_speed(small, out, tmp_path, monkeypatch):
    class Shifted(loading.PrefetchLoader):
        def __next__(self):
            batch = super().__next__()
            return batch._replace(hr=batch.hr.roll(1, dims=2))

    monkeypatch.setattr(loading, "PrefetchLoader", Shifted)
    monkeypatch.setattr(loading, "BASELINES", {"reference": (*loading.BASELINES["reference"][:2], (0,))})
    bench = Bench("test", CPU, "naive")
    loading.measure(bench, tmp_path, rounds=1)
    kinds = {(row.case, row.recipe): row.kind for row in bench.results.rows}
    assert kinds["loading", "rdn_fast"] == kinds["loading", "rdn_fast resident"] == "not measured"
    assert kinds["loading", "reference"] == kinds["opening", "rdn_fast"] == "measured"
    assert not any(case == "paced loading" for case, _ in kinds)
    assert all("wrong: the HR patch is not that of its LR patch" in failure for failure in bench.failures)
    assert len(bench.failures) == 2


@pytest.mark.parametrize(("known", "share", "late"), [(0.0, 0.25, 1), (0.01, 0.5, 1), (0.0, 0.25, 1.1)])
def test_the_steady_consumers_wait_is_the_larger_of_two_clocks(monkeypatch, known, share, late):
    now = [0.0]

    class Feeding:
        prefetch = SimpleNamespace(waited=7.0)

        def fresh(self):
            now[0] += 100  # is not on the clock
            self.batches = self

        def __next__(self):
            now[0] += 0.005
            self.prefetch.waited += known

    monkeypatch.setattr(
        loading,
        "time",
        SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + late * seconds)),
    )
    waited, times, unsteady = loading.paced(Feeding(), CPU, *(Times([], 3) for _ in range(3)))
    assert unsteady == ("" if late == 1 else "sleeps last 1.10x as long as asked")
    assert len(times.every) == (3 if late == 1 else 9)
    assert times.median == pytest.approx(0.005 + late * loading.PERIOD)
    assert waited == pytest.approx(share, rel=0.1)


def test_a_file_opened_wrongly_is_noticed(small, tmp_path, monkeypatch):
    contender = loading.opening(tmp_path).entries[0].build()
    contender.check()

    class Swapped(PairedH5):
        def image(self, group, i):
            return super().image(group, len(self) - 1 - i if group == HR else i)

    monkeypatch.setattr(loading, "PairedH5", Swapped)
    with pytest.raises(AssertionError, match="hr 0 has other pixels"):
        contender.check()

"""Crops that training keeps of its validations: when, how many, the same through resumes, and in TensorBoard."""

import numpy as np
import pytest
from runs import TINY, events, make_data, photograph

from rdn_fast.cli import main
from rdn_fast.data.degradation import PLAIN
from rdn_fast.data.pairs import degrade
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.evaluation import sheet
from rdn_fast.evaluation.metrics import psnr_y
from rdn_fast.training.snapshot import KEEP, LOOKED_AT, Snapshot, list_sheets, sheet_step, sheets_folder, spread
from rdn_fast.training.state import RunState


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(data, tmp_path):
    def run(*flags, to="out"):
        words = ("--data-path", data, "--outputs-dir", tmp_path / to, *TINY, "--batch-size", 8, "--rdb", "naive")
        assert main([str(word) for word in ("train", *words, *flags)]) == 0
        return tmp_path / to

    return run


def steps(outputs):
    return sorted(map(sheet_step, list_sheets(outputs)))


def test_sheets_are_kept_at_doubled_steps_and_at_the_end(train):
    out = train("--epochs", 6)  # of three steps
    assert steps(out) == [3, 6, 12, 18]
    sheets = [sheet.decode(path.read_bytes()) for path in reversed(list_sheets(out))]
    for each in sheets:
        (epoch,) = [record for record in events(out, "epoch") if record["step"] == each.step]
        assert each.pictures == len(each.measured) == 2
        assert np.mean([measured.rdn_psnr for measured in each.measured]) == pytest.approx(epoch["psnr_y"])
    tracked = [[(crop.name, crop.left, crop.top) for crop in each.crops["tracked"]] for each in sheets]
    assert len(tracked[0]) == 2
    assert all(windows == tracked[0] for windows in tracked)


def test_a_resumed_run_has_the_same_sheets(train):
    whole, out = train("--epochs", 6, to="whole"), train("--epochs", 6, "--checkpoint-every", "1e-9")
    max(out.glob("checkpoints/step_*")).unlink()
    list_sheets(out)[0].unlink()
    (sheets_folder(out) / ".step_00000018.png.1234abcd.tmp").write_bytes(b"half")
    (sheets_folder(out) / "mine.png").write_bytes(b"the user's")
    train("--epochs", 6, "--resume", "auto")
    ours, theirs = ({path.name: path.read_bytes() for path in list_sheets(run)} for run in (out, whole))
    assert ours == theirs
    assert [path.name for path in sheets_folder(out).iterdir() if path.name not in theirs] == ["mine.png"]
    train("--epochs", 1)  # another run: the first one is set aside, but not the user's file
    assert steps(out) == [3]
    assert (sheets_folder(out) / "mine.png").exists()
    (aside,) = out.glob("earlier-*")
    assert steps(aside) == [3, 6, 12, 18]


def test_nothing_is_kept_without_validation(tmp_path, data):
    words = ("train", "--train-file", data / "DIV2K_x2.h5", "--outputs-dir", tmp_path / "out", *TINY, "--max-steps", 1)
    assert main([*map(str, words), "--rdb", "naive"]) == 0
    assert not sheets_folder(tmp_path / "out").exists()


def test_tensorboard_shows_the_crops(train):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = train("--epochs", 2)
    images = accumulator.EventAccumulator(str(out / "tensorboard")).Reload().Images("validation/bicubic, RDN, HR")
    shown = {image.step: image.encoded_image_string for image in images}
    assert shown == {sheet_step(path): path.read_bytes() for path in list_sheets(out)}
    assert sorted(shown) == [3, 6]


def test_many_resumes_leave_few_sheets(train):
    out = train("--epochs", 1)
    for i in range(KEEP + 3):
        (sheets_folder(out) / f"step_{i:08}.png").write_bytes(b"")
    train("--epochs", 9, "--resume", "auto", "--eval-every", 9)
    assert steps(out) == [*range(4, KEEP + 3), 27]


def test_when_a_snapshot_is_due():
    assert RunState(step=1).snapshot_is_due(over=False)
    assert not RunState(step=199, snapshot_step=100).snapshot_is_due(over=False)
    assert RunState(step=200, snapshot_step=100).snapshot_is_due(over=False)
    assert RunState(step=101, snapshot_step=100).snapshot_is_due(over=True)


@pytest.mark.parametrize(("count", "most"), [(0, 4), (3, 4), (4, 4), (5, 4), (100, 16)])
def test_pictures_are_spread_evenly(count, most):
    chosen = spread(range(count), most)
    assert len({*chosen}) == min(count, most)
    gaps = np.diff([*chosen, count]) if chosen else np.array([1])
    assert gaps.max() - gaps.min() <= 1


def test_ranks_share_the_pictures_of_a_large_set(monkeypatch):
    pairs = [degrade(f"p{i}", photograph(40, 36, seed=i), 2) for i in range(2 * LOOKED_AT)]
    outputs = [PLAIN.resize(pair.lr, 40, 36).astype(np.float32) + 0.3 for pair in pairs]
    of_ranks = [Snapshot(len(pairs), PLAIN, 2) for _ in range(2)]
    for i, (pair, output) in enumerate(zip(pairs, outputs, strict=True)):
        of_ranks[i // 2 % 2].look(i, pair, output)
    ranks = Ranks()
    monkeypatch.setattr(ranks, "gather", lambda value: [each._found for each in of_ranks])
    seen = of_ranks[0].sheet(ranks, 5)
    assert [each.name for each in seen.measured] == [f"p{i}" for i in range(0, len(pairs), 2)]
    assert [crop.name for crop in seen.crops["tracked"]] == ["p0", "p8", "p16", "p24"]
    assert (len(seen.crops["best"]), len(seen.crops["worst"])) == (2, 2)
    assert seen.measured[3].rdn_psnr == psnr_y(outputs[6], pairs[6].hr, 2)


def test_no_sheet_where_no_output_was_finite():
    assert Snapshot(3, PLAIN, 2).sheet(Ranks(), 5) is None

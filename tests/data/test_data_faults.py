"""Data that is damaged, lost or slow during a run: one clear line, a whole checkpoint, the same weights."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from unittest import mock

import pytest
from runs import TINY, command, events, make_data, photograph
from waiting import PATIENCE

from rdn_fast.cli import main
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.pairs import degrade
from rdn_fast.data.prefetch import PrefetchLoader
from rdn_fast.data.sampler import PatchSampler

# 21 patches: 6 steps an epoch. A checkpoint whenever the one before is written.
FLAGS = (
    *TINY,
    "--batch-size",
    4,
    "--opt-level",
    "O0",
    "--rdb",
    "naive",
    "--epochs",
    100_000,
    "--checkpoint-every",
    "1e-9",
)
SLOW = 0.05  # seconds that a slow disk takes for a batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The training file, undamaged."""
    return make_data(tmp_path_factory.mktemp("data")) / "DIV2K_x2.h5"


@pytest.fixture
def file(whole, tmp_path):
    """A copy of the training file, to be damaged."""
    return shutil.copy(whole, tmp_path / "train.h5")


@pytest.fixture(scope="module")
def other(whole):
    """Another training file of just as many bytes: other pictures of the same sizes."""
    sizes = [pair.hr.shape[:2] for pair in PairedH5(whole, 2)]
    path = whole.with_name("other.h5")
    write_pairs(path, [degrade(f"train{i}", photograph(*size, seed=50 + i), 2) for i, size in enumerate(sizes)])
    assert path.stat().st_size == whole.stat().st_size
    return path


@pytest.fixture
def train(whole, tmp_path, capsys):
    """train(*flags, file=whole, to="out", code=0) runs in this process and returns the run's folder.

    `train.told` is what it printed.
    """

    def run(*flags, file=whole, to="out", code=0):
        capsys.readouterr()
        data = () if "--train-dir" in flags else ("--train-file", file)
        assert main([str(word) for word in ("train", *data, "--outputs-dir", tmp_path / to, *FLAGS, *flags)]) == code
        run.told = capsys.readouterr()
        return tmp_path / to

    return run


@pytest.fixture
def start(tmp_path):
    """start(*flags): a run to tmp_path/out in a process of its own, with three epochs done; it ends with the test."""
    processes = []

    def run(*flags):
        words = command("train", "--outputs-dir", tmp_path / "out", *FLAGS, *flags)
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        wait_for(process, "epoch 2: ")
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(process, words):
    while words not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()


@contextmanager
def at_steps(steps, action):
    """Call action() before the slot of each of these steps, counted from 0, is filled."""
    fill = PrefetchLoader._fill

    def filled(self, step, slot):
        if step in steps:
            action()
        fill(self, step, slot)

    with mock.patch.object(PrefetchLoader, "_fill", filled):
        yield


def slow(steps):
    return at_steps(steps, lambda: time.sleep(SLOW))


def newest(out):
    """The step of the newest checkpoint."""
    return max(int(path.stem.removeprefix("step_")) for path in out.glob("checkpoints/step_*.pt"))


def last(out):
    return (out / "last.pth").read_bytes()


def assert_failed(err, path):
    """One line, as a failed run tells it, that names the file and says how to go on."""
    assert re.fullmatch(
        rf"rdn-fast: failed: {re.escape(str(path))}: was c[a-z]+ .*while it was in use.*; .*--resume auto.*\n", err
    ), err


def assert_goes_on_exactly(train, file, out, *flags):
    """A resume of the run in `out` is the run that nobody disturbed: the same bytes, and every step told once."""
    saved = newest(out)
    end = saved + 8
    train("--max-steps", end, *flags, "--resume", "auto", file=file, to=out)
    assert f"resumed at step {saved}," in train.told.out  # it was not damaged
    assert last(out) == last(train("--max-steps", end, to="undisturbed"))
    assert [record["step"] for record in events(out, "step")] == list(range(1, end + 1))


def truncate(file, _):
    os.truncate(file, file.stat().st_size // 2)


def overwrite(file, other):
    with file.open("r+b") as there:
        there.write(other.read_bytes())


def replace(file, other):
    os.replace(shutil.copy(other, file.with_suffix(".new")), file)


def delete(file, _):
    file.unlink()


# ---- the file changes under a run ----


@pytest.mark.parametrize(
    ("fault", "flags"),
    [
        pytest.param(truncate, ("--num-workers", 0), marks=pytest.mark.slow),
        (truncate, ("--num-workers", 2)),
        pytest.param(truncate, ("--num-workers", 2, "--data-mode", "h5py"), marks=pytest.mark.slow),
        pytest.param(overwrite, ("--num-workers", 1), marks=pytest.mark.slow),
    ],
    ids=lambda value: value.__name__ if callable(value) else " ".join(map(str, value)),
)
def test_a_file_that_changes_ends_the_run(file, other, whole, train, start, tmp_path, fault, flags):
    process = start("--train-file", file, *flags)
    fault(file, other)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert_failed(err, file)
    shutil.copy(whole, file)
    assert_goes_on_exactly(train, file, tmp_path / "out", *flags)


@pytest.mark.slow
def test_two_ranks_on_a_folder_whose_file_is_truncated(train, start, image_folder, tmp_path):
    """Until then they do what one rank with the whole batch does."""
    flags = ("--train-dir", image_folder(5, size=(64, 56)), "--drop-last", "--lr", "1e-4")  # 25 patches: 8 + 8 + 8
    process = start(*flags, "--nproc", 2)
    file = tmp_path / "images_x2.rdn_fast.h5"
    content = file.read_bytes()
    truncate(file, None)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert f": failed: {file}: was c" in err
    assert (
        err.count(": failed: ") == err.count("--resume auto") == err.count("\n") <= 2
    )  # one line of each rank that speaks
    assert "Traceback" not in err
    file.write_bytes(content)
    out = tmp_path / "out"
    ours, theirs = (
        events(folder, "step")[:9] for folder in (out, train(*flags, "--batch-size", 8, "--max-steps", 9, to="one"))
    )
    assert [record["epoch"] for record in ours] == [record["epoch"] for record in theirs] == [0] * 3 + [1] * 3 + [2] * 3
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)) < 1e-6
    saved = newest(out)
    train(*flags, "--batch-size", 8, "--max-steps", saved + 1, "--resume", "auto")
    assert f"resumed at step {saved}," in train.told.out
    assert "making it" not in train.told.out


def test_a_file_that_is_replaced_and_deleted_is_used_to_the_end(file, other, train, start, tmp_path):
    process = start("--train-file", file)
    replace(file, other)
    wait_for(process, "epoch:")
    delete(file, other)
    wait_for(process, "epoch:")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (128 + signal.SIGTERM, "")
    saved = int(out.split("saved at step ")[1].split(";")[0])
    assert saved >= 24
    assert last(tmp_path / "out") == last(train("--max-steps", saved, to="undisturbed"))


@pytest.mark.parametrize("mode", ["mmap", "resident", "h5py"])
@pytest.mark.parametrize("fault", [replace, delete])
def test_every_mode_keeps_the_file_that_it_opened(file, other, train, mode, fault):
    with at_steps([0], lambda: fault(file, other)):
        out = train("--max-steps", 8, "--data-mode", mode, file=file)
    assert last(out) == last(train("--max-steps", 8, to="undisturbed"))


@pytest.mark.parametrize("mode", ["mmap", "h5py"])
@pytest.mark.parametrize("fault", [truncate, overwrite])
def test_nothing_is_learnt_from_a_file_that_changes_while_it_is_read(file, other, whole, train, mode, fault):
    share = PatchSampler.share

    def shared(self, step):
        if step == 9:
            time.sleep(0.2)  # the checkpoint of step 9 is written, so that the next one is not left out
            fault(file, other)
        return share(self, step)

    with mock.patch.object(PatchSampler, "share", shared):
        out = train("--num-workers", 0, "--data-mode", mode, file=file, code=1)
    assert_failed(train.told.err, file)
    shutil.copy(whole, file)
    assert_goes_on_exactly(train, file, out, "--data-mode", mode)


@pytest.mark.parametrize("fault", [truncate, overwrite])
def test_a_validation_file_that_changes_ends_the_run(file, other, whole, train, fault):
    with at_steps([9], lambda: fault(file, other)):
        out = train("--eval-file", file, "--num-workers", 0, code=1)
    assert_failed(train.told.err, file)
    shutil.copy(whole, file)
    assert_goes_on_exactly(train, whole, out)


# ---- a fill thread fails ----


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_fill_that_fails_ends_the_run_and_leaves_nothing(train, workers):
    before = set(threading.enumerate())

    def fail():
        raise ZeroDivisionError("no patch")

    with at_steps([13], fail), pytest.raises(ZeroDivisionError, match="no patch"):
        train("--num-workers", workers)
    assert set(threading.enumerate()) <= before
    out = train("--max-steps", 14, "--resume", "auto")  # the folder is not locked any more
    assert re.search(r"^resumed at step ([1-9]|1[0-3]),", train.told.out, re.M)
    assert [record["step"] for record in events(out, "step")] == list(range(1, 15))


# ---- how the data comes changes nothing ----


def test_mode_and_threads_change_no_bit(train):
    expected = last(train("--max-steps", 14, "--data-mode", "mmap", "--num-workers", 0))
    for mode, workers in itertools.product(("auto", "mmap", "resident", "h5py"), (0, 1, 3)):
        assert last(train("--max-steps", 14, "--data-mode", mode, "--num-workers", workers)) == expected, (
            mode,
            workers,
        )
        assert re.search(
            rf"^data: {'mmap' if mode == 'auto' else mode} \(.*\); {workers} fill thread", train.told.out, re.M
        )


def test_a_resume_may_change_mode_and_threads(train):
    for steps, mode, workers in (
        (4, "mmap", 3),
        (8, "resident", 0),
        (11, "h5py", 1),
        (13, "resident", 2),
        (14, "auto", 0),
    ):
        out = train("--max-steps", steps, "--data-mode", mode, "--num-workers", workers, "--resume", "auto")
        assert "note:" not in train.told.out
    assert [record["step"] for record in events(out, "resume")] == [4, 8, 11, 13]
    assert last(out) == last(train("--max-steps", 14, to="undisturbed"))


def test_a_compressed_file_trains_through_h5py_and_says_why(whole, train, make_h5, tmp_path):
    pairs = PairedH5(whole, 2)
    path = make_h5(tmp_path / "compressed.h5", [pair[1:] for pair in pairs], compression="gzip")
    out = train("--max-steps", 8, file=path)
    line = next(line for line in train.told.out.splitlines() if line.startswith("data: "))
    for words in ("h5py", "/lr/0 is compressed (gzip)", f"rdn-fast prepare --repack {path} NEW.h5"):
        assert words in line
    assert last(out) == last(train("--max-steps", 8, to="undisturbed"))
    assert main(["prepare", "--repack", str(path), str(tmp_path / "new.h5")]) == 0
    assert last(train("--max-steps", 8, "--data-mode", "mmap", file=tmp_path / "new.h5", to="repacked")) == last(out)


def test_images_smaller_than_the_patch_are_named_and_left_out(whole, train, tmp_path):
    pairs = PairedH5(whole, 2)
    large = [min(pair.lr.shape[:2]) >= 14 for pair in pairs]
    small = [pair.name for pair, kept in zip(pairs, large, strict=True) if not kept]
    assert 0 < len(small) < 21
    out = train("--patch-size", 14, "--max-steps", 8)
    assert f"left out {len(small)} images smaller than the patch: {', '.join(small)}\n" in train.told.out
    assert f"{21 - len(small)} patches per epoch" in train.told.out
    write_pairs(tmp_path / "large.h5", [pair for pair, kept in zip(pairs, large, strict=True) if kept])
    assert last(out) == last(train("--patch-size", 14, "--max-steps", 8, file=tmp_path / "large.h5", to="large"))
    assert "left out" not in train.told.out


# ---- --drop-last ----


def test_drop_last_makes_full_batches_only(train, tmp_path):
    out = train("--drop-last", "--max-steps", 11)
    assert "20 patches per epoch, 5 steps" in train.told.out
    assert [record["epoch"] for record in events(out, "step")] == [0] * 5 + [1] * 5 + [2]
    for steps in (3, 5, 7, 11):
        train("--drop-last", "--max-steps", steps, "--resume", "auto", to="resumed")
    assert last(tmp_path / "resumed") == last(out)
    assert last(train("--max-steps", 11, to="all")) != last(out)


def test_a_resume_cannot_change_drop_last(train):
    for first, second, was, now in (((), ("--drop-last",), False, True), (("--drop-last",), (), True, False)):
        out = train(*first, "--max-steps", 2)
        before = last(out)
        train(*second, "--max-steps", 8, "--resume", "auto", code=2)
        assert train.told.err.endswith(f"but drop_last was {was}, now {now}\n")
        assert train.told.err.count("\n") == 1
        assert last(out) == before


def test_drop_last_that_would_leave_nothing(train):
    train("--drop-last", "--batch-size", 22, code=2)
    assert re.fullmatch(
        r"rdn-fast: error: .*: 21 images .* batch of 22; .*--batch-size, .*--drop-last\n", train.told.err
    )
    train("--drop-last", "--batch-size", 21, "--max-steps", 1)


# ---- how long was waited ----


def waits(out):
    return [record["data_wait_s"] for record in events(out, "epoch")]


def test_every_epoch_tells_what_it_waited(train):
    with slow(range(6, 12)):
        first, second, third = waits(train("--max-steps", 18, "--num-workers", 0))
    assert 6 * SLOW <= second < 6 * SLOW + 5
    assert 0 <= first < second
    assert 0 <= third < second
    told = re.findall(r"^epoch \d: .*, waited (\d+\.\d\d) s for data", train.told.out, re.M)
    assert told == [f"{value:.2f}" for value in (first, second, third)]


def test_what_is_filled_beside_the_steps_is_not_waited_for(train):
    """Waited is what filling takes, less the time that the caller spent elsewhere meanwhile."""
    calls = []  # when the caller began to ask for a batch, and when it had it
    enter, ask = PrefetchLoader.__enter__, PrefetchLoader.__next__

    def entered(self):
        calls.append((time.perf_counter(),) * 2)
        return enter(self)

    def asked(self):
        began = time.perf_counter()
        batch = ask(self)
        calls.append((began, time.perf_counter()))
        return batch

    with slow(range(12)), mock.patch.multiple(PrefetchLoader, __enter__=entered, __next__=asked):
        waited = sum(waits(train("--max-steps", 12, "--num-workers", 1)))
    elsewhere = sum(began - end for (_, end), (began, _) in itertools.pairwise(calls))
    asking = sum(end - began for began, end in calls)
    assert 6 * SLOW - elsewhere <= waited <= asking


def test_a_resume_in_the_middle_of_an_epoch_keeps_what_was_waited(train):
    with slow(range(6, 12)):
        with at_steps([9], lambda: os.kill(os.getpid(), signal.SIGTERM)):
            train("--num-workers", 0, code=128 + signal.SIGTERM)
        assert "saved at step 10;" in train.told.out
        out = train("--max-steps", 12, "--num-workers", 0, "--resume", "auto")
    _, second = waits(out)
    assert second >= 6 * SLOW  # four batches before the resume, and two after it


# ---- --train-dir ----


def test_a_folder_trains_as_its_prepared_file(train, image_folder, tmp_path):
    folder = image_folder(4, size=(64, 56))
    out = train("--train-dir", folder, "--max-steps", 8)
    made = tmp_path / "images_x2.rdn_fast.h5"
    assert f"{made} is not there yet; making it" in train.told.out
    assert main(["prepare", "--images-dir", str(folder), "--output-path", str(tmp_path / "prepared.h5")]) == 0
    assert last(train("--max-steps", 8, file=tmp_path / "prepared.h5", to="prepared")) == last(out)
    before = made.stat()
    assert last(train("--train-dir", folder, "--max-steps", 8, to="again")) == last(out)
    assert "making it" not in train.told.out
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    train("--train-dir", folder, "--max-steps", 9, "--resume", "auto", to="prepared")
    assert "resumed at step 8," in train.told.out


def test_a_folder_where_nothing_can_be_written(train, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(image_folder(4, size=(64, 56)))
    out = train("--train-dir", "/proc/self/cwd", "--max-steps", 8)  # /proc takes no files, not even root's
    made = re.search(r"^(\S+\.h5): 20 patches per epoch", train.told.out, re.M)[1]
    assert made.startswith(os.environ["XDG_CACHE_HOME"])
    assert last(train("--train-dir", tmp_path / "images", "--max-steps", 8, to="beside")) == last(out)
    train("--train-dir", "/proc/self/cwd", "--max-steps", 1, to="again")
    assert "making it" not in train.told.out


@pytest.mark.slow
def test_two_runs_at_once_make_the_file_of_a_folder_once(train, image_folder, tmp_path):
    folder = image_folder({f"{i}.png": photograph(200, 200, seed=i) for i in range(8)})
    words = [
        command("train", "--train-dir", folder, "--outputs-dir", tmp_path / name, *FLAGS, "--max-steps", 8)
        for name in "ab"
    ]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for line in words]
    told = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [(process.returncode, err) for process, (_, err) in zip(processes, told, strict=True)] == [(0, "")] * 2
    assert sum("making it" in out for out, _ in told) == 1
    assert sum(" pairs from 8 images " in out for out, _ in told) == 1
    assert last(tmp_path / "a") == last(tmp_path / "b") == last(train("--train-dir", folder, "--max-steps", 8))
    assert sorted(path.name for path in tmp_path.glob("*images*")) == ["images", "images_x2.rdn_fast.h5"]

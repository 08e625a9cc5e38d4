"""A folder's training file is made once, by whatever number of processes and after kills.

It is used only if it is whole and made of these images.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from runs import ROOT
from waiting import PATIENCE

from rdn_fast.cache import cache_folder
from rdn_fast.data import from_folder as module
from rdn_fast.data.degradation import PLAIN, Degradation
from rdn_fast.data.from_folder import training_pairs
from rdn_fast.data.h5 import PairedH5
from rdn_fast.errors import UserError

MADE = " pairs from "  # in the line that ends a file's making


def training_file(folder, scale) -> Path:
    return training_pairs(folder, scale).path


@pytest.fixture
def refused():
    """refused(folder): the one-line message of a folder that must be refused."""

    def message(folder, scale=2):
        with pytest.raises(UserError) as caught:
            training_file(folder, scale)
        text = str(caught.value)
        assert text.startswith(f"{folder}: ")
        assert "\n" not in text
        return text

    return message


@pytest.fixture
def made_anew(capsys):
    """made_anew(path, folder): whether opening the folder makes its existing file again. The path stays the same."""

    def run(path, folder, scale=2):
        before, _ = path.stat(), capsys.readouterr()
        assert training_file(folder, scale) == path
        assert len(PairedH5(path, scale)) % 5 == 0
        anew, told = path.stat().st_ino != before.st_ino, capsys.readouterr().out
        assert (MADE in told) == anew
        if not anew:
            assert told == ""
            assert path.stat().st_mtime_ns == before.st_mtime_ns
        return anew

    return run


def all_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what is made, and where ----


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pixels_and_names_are_those_of_prepare(image_folder, cli, tmp_path, scale):
    folder = image_folder(3, size=(61, 47))
    assert cli("prepare", "--images-dir", folder, "--output-path", tmp_path / "prepared.h5", "--scale", scale).code == 0
    path = training_file(folder, scale)
    with h5py.File(path) as ours, h5py.File(tmp_path / "prepared.h5") as theirs:
        assert len(theirs["hr"]) == 15
        for group in ("lr", "hr"):
            assert list(ours[group]) == list(theirs[group])
            for key, data in theirs[group].items():
                np.testing.assert_array_equal(ours[group][key], data)
                assert dict(ours[group][key].attrs) == dict(data.attrs)


def test_it_lies_beside_the_folder_and_says_so_once(image_folder, tmp_path, capsys):
    folder = image_folder(2)
    path = training_file(str(folder), 3)
    assert path == tmp_path / "images_x3.rdn_fast.h5"
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"--train-dir {folder}: {path} is not there yet; making it.")
    assert "may be deleted" in first
    assert last == f"{path}: 10 pairs from 2 images at x3, 0 files skipped"
    assert all_in(tmp_path) == ["images", "images_x3.rdn_fast.h5"]
    assert all_in(folder) == ["picture_0.png", "picture_1.png"]
    assert training_file(folder, 3) == path
    assert capsys.readouterr().out == ""


def test_every_spelling_of_a_folder_means_the_same_file(image_folder, tmp_path, made_anew, monkeypatch):
    path = training_file(image_folder(1), 2)
    monkeypatch.chdir(tmp_path / "images")
    for folder in (".", "../images", "../images/", tmp_path / "images"):
        assert not made_anew(path, folder)


def test_a_linked_folder_has_its_file_beside_the_link(image_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link").symlink_to(image_folder(1))
    assert training_file(tmp_path / "mine" / "link", 2) == tmp_path / "mine" / "link_x2.rdn_fast.h5"


def test_each_degradation_has_its_own_file_that_says_it(image_folder, tmp_path, made_anew):
    folder = image_folder(2)
    others = [Degradation("matlab"), Degradation("pillow", "dn"), Degradation("matlab", "jpeg:30-90")]
    files = [training_pairs(folder, 2, each) for each in (PLAIN, *others)]
    names = ["", "_matlab", "_dn", "_matlab_jpeg30-90"]
    assert [file.path.name for file in files] == [f"images_x2{name}.rdn_fast.h5" for name in names]
    assert [file.lr_made_by for file in files] == [each.in_words for each in (PLAIN, *others)]
    assert len({file[0].lr.tobytes() for file in files}) == 4
    again = [training_pairs(folder, 2, each).path.stat().st_ino for each in (PLAIN, *others)]
    assert again == [file.path.stat().st_ino for file in files]


def test_each_scale_has_its_own_file(image_folder, tmp_path, made_anew):
    folder = image_folder(1)
    paths = {scale: training_file(folder, scale) for scale in (2, 4)}
    assert all_in(tmp_path) == ["images", "images_x2.rdn_fast.h5", "images_x4.rdn_fast.h5"]
    for scale, path in paths.items():
        assert not made_anew(path, folder, scale)


# ---- when it is made anew ----


def touch(folder):
    path = folder / "picture_1.png"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def resize(folder):
    path = folder / "picture_1.png"
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "another time": touch,
    "another size": resize,
    "renamed": lambda folder: (folder / "picture_1.png").rename(folder / "zebra.png"),
    "removed": lambda folder: (folder / "picture_1.png").unlink(),
    "added": lambda folder: os.link(folder / "picture_1.png", folder / "zebra.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_make_another_file(image_folder, made_anew, change):
    folder = image_folder(2)
    path = training_file(folder, 2)
    CHANGES[change](folder)
    assert made_anew(path, folder)
    assert not made_anew(path, folder)


def test_new_pixels_are_taken(image_folder, tmp_path, photograph, capsys):
    folder = image_folder({"a.png": photograph(40, 40, seed=1)})
    path = training_file(folder, 2)
    image = photograph(44, 48, seed=2)
    Image.fromarray(image).save(folder / "a.png")
    capsys.readouterr()
    assert training_file(folder, 2) == path
    np.testing.assert_array_equal(PairedH5(path, 2)[0].hr, image[:22, :24])
    assert f"{path} is out of date; making it." in capsys.readouterr().out
    assert all_in(tmp_path) == ["images", path.name]


def test_another_recipe_makes_another_file(image_folder, made_anew, monkeypatch):
    folder = image_folder(1)
    path = training_file(folder, 2)
    monkeypatch.setattr(module, "_RECIPE", module._RECIPE + 1)
    assert made_anew(path, folder)
    assert not made_anew(path, folder)


def test_hidden_files_and_folders_make_no_difference(image_folder, made_anew):
    folder = image_folder(1)
    path = training_file(folder, 2)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "thumbnails").mkdir()
    assert not made_anew(path, folder)


def test_who_has_mapped_the_old_file_keeps_it(image_folder, photograph, made_anew):
    folder = image_folder({"a.png": photograph(60, 60, seed=1)})
    path = training_file(folder, 2)
    old = PairedH5(path, 2)
    before = [np.array(image) for pair in old for image in pair[1:]]
    Image.fromarray(photograph(60, 60, seed=2)).save(folder / "a.png")
    assert made_anew(path, folder)
    for image, kept in zip([image for pair in old for image in pair[1:]], before, strict=True):
        np.testing.assert_array_equal(image, kept)
    assert not np.array_equal(PairedH5(path, 2)[0].hr, before[1])


def truncate(path):
    os.truncate(path, path.stat().st_size * 9 // 10)


def lose_a_partner(path):
    with h5py.File(path, "r+") as file:
        del file["lr/3"]


def damage_a_header(path):
    with h5py.File(path) as file:
        header = h5py.h5o.get_info(file["lr/3"].id).addr
    content = bytearray(path.read_bytes())
    content[header : header + 16] = bytes(16)
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no h5"),
    "truncated": truncate,
    "no partner": lose_a_partner,
    "header": damage_a_header,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_made_anew(image_folder, tmp_path, capsys, damage):
    folder = image_folder(1)
    path = training_file(folder, 2)
    whole = [np.array(pair.hr) for pair in PairedH5(path, 2)]
    DAMAGES[damage](path)
    capsys.readouterr()
    assert training_file(folder, 2) == path
    told = capsys.readouterr().out
    assert f"{path} is damaged; making it." in told
    assert MADE in told
    for pair, expected in zip(PairedH5(path, 2), whole, strict=True):
        np.testing.assert_array_equal(pair.hr, expected)
    assert all_in(tmp_path) == ["images", path.name]


def test_a_file_that_says_nothing_of_its_images_is_not_taken(image_folder, cli, tmp_path, made_anew):
    folder, path = image_folder(2), tmp_path / "images_x2.rdn_fast.h5"
    assert cli("prepare", "--images-dir", folder, "--output-path", path).code == 0
    assert made_anew(path, folder)


# ---- images that cannot be used ----


def test_unreadable_image_is_named_and_skipped(image_folder, capsys):
    folder = image_folder(1)
    (folder / "notes.txt").write_text("no picture")
    path = training_file(folder, 2)
    told = capsys.readouterr().out
    assert f"skipped {folder / 'notes.txt'}: " in told
    assert told.endswith(": 5 pairs from 1 images at x2, 1 files skipped\n")
    assert len(PairedH5(path, 2)) == 5


def test_nothing_usable_makes_nothing(image_folder, tmp_path, refused):
    folder = image_folder(0)
    (folder / "notes.txt").write_text("no picture")
    assert "none of its 1 files is an image that can be used" in refused(folder)
    assert all_in(tmp_path) == ["images"]


def test_failed_making_keeps_the_old_file(image_folder, tmp_path, refused):
    folder = image_folder(1)
    path = training_file(folder, 2)
    before = path.read_bytes()
    (folder / "picture_0.png").write_text("no picture any more")
    refused(folder)
    assert path.read_bytes() == before
    assert all_in(tmp_path) == ["images", path.name]


def test_empty_and_missing_folders(image_folder, tmp_path, refused):
    assert "holds no files" in refused(image_folder(0))
    assert "no such folder" in refused(tmp_path / "none")
    assert all_in(tmp_path) == ["images"]


# ---- where it cannot be written ----


@pytest.mark.parametrize(
    "length",
    [255, 245, 240, 230],
    ids=["the folder's name itself is as long as can be", "one more letter", "lock", "aside"],
)
def test_name_too_long_beside_the_folder(image_folder, tmp_path, made_anew, length):
    # Of 255 letters, "_x2.rdn_fast.h5" takes 15, and the file's name while it is written aside takes 14 more.
    folder = image_folder(1, name="n" * length)
    path = training_file(folder, 2)
    assert path.parent == cache_folder()
    assert path.name.startswith("n" * 40 + "-")
    assert len(PairedH5(path, 2)) == 5
    assert all_in(tmp_path) == [folder.name]
    assert not made_anew(path, folder)
    (folder / "picture_0.png").rename(folder / "other.png")
    assert made_anew(path, folder)
    assert [other.name for other in cache_folder().glob(f"*{path.name}*")] == [path.name]
    assert all_in(tmp_path) == [folder.name]


def test_folder_whose_parent_takes_no_files(image_folder, made_anew, monkeypatch):
    # /proc takes none, not even root's.
    monkeypatch.chdir(image_folder(1))
    path = training_file("/proc/self/cwd", 2)
    assert path.parent == cache_folder()
    assert not made_anew(path, "/proc/self/cwd")


def test_folders_of_one_name_have_files_of_their_own(image_folder, tmp_path):
    paths = [training_file(image_folder(count, name=f"{count}/{'n' * 250}"), 2) for count in (1, 2)]
    assert [len(PairedH5(path, 2)) for path in paths] == [5, 10]


def test_file_that_is_there_is_taken_where_nothing_can_be_written(image_folder, monkeypatch):
    folder = image_folder(1)
    path = training_file(folder, 2)
    monkeypatch.setattr(module, "lock", None)  # not called
    assert training_file(folder, 2) == path


def test_no_place_at_all(image_folder, monkeypatch, refused):
    monkeypatch.setattr(module, "cache_folder", lambda: Path("/proc/self"))
    message = refused(image_folder(1, name="n" * 250))
    assert "no training file can be written" in message
    assert "--train-file" in message


def test_a_folder_in_its_place(image_folder, tmp_path):
    folder = image_folder(1)
    (tmp_path / "images_x2.rdn_fast.h5").mkdir()
    with pytest.raises(UserError, match=r"images_x2.rdn_fast.h5: is a folder; give a file"):
        training_file(folder, 2)
    assert all_in(tmp_path) == ["images", "images_x2.rdn_fast.h5"]


# ---- several processes ----


@pytest.fixture
def large(image_folder, photograph):
    """A folder whose file takes a while to make."""
    picture = photograph(300, 300)
    return image_folder({f"{i}.png": picture for i in range(24)})


_OPEN = """
import signal, sys
from rdn_fast.data.from_folder import training_pairs
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
print("ready")
sys.stdin.read()
print(training_pairs(sys.argv[1], 2).path)
"""


@pytest.fixture
def start():
    """start(folder): a process that, after let_go(), opens the folder's file at x2 and prints its path last."""
    processes = []

    def run(folder):
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", _OPEN, str(folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def let_go(*processes) -> None:
    """Let all processes go on at the same time."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.close()
        process.stdin = None


def stop_half_way(process, path, half_written=None) -> Path:
    """Stop a process (SIGSTOP) while it makes `path`. Return the file it is writing, which is not `half_written`."""
    while not (files := set(path.parent.glob(f".{path.name}.*.tmp")) - {half_written}):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    assert not path.exists()
    return files.pop()


def let_wait(process, folder, path) -> None:
    """Let a process go that must say that it waits for another one."""
    let_go(process)
    assert process.stdout.readline() == f"--train-dir {folder}: another process is making {path}; waiting for it\n"


def ended(process) -> tuple[str, str]:
    """What a process printed that must end well, and its last line."""
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    return out, out.splitlines()[-1]


@pytest.mark.slow
def test_second_process_waits_for_the_first_and_takes_its_file(large, tmp_path, start):
    path = tmp_path / "images_x2.rdn_fast.h5"
    first, second = start(large), start(large)
    let_go(first)
    stop_half_way(first, path)
    let_wait(second, large, path)
    time.sleep(0.2)
    assert second.poll() is None
    first.send_signal(signal.SIGCONT)
    told, last = ended(first)
    assert MADE in told
    assert last == str(path)
    assert ended(second) == (f"{path}\n", str(path))
    assert len(PairedH5(path, 2)) == 120
    assert all_in(tmp_path) == ["images", path.name]


@pytest.mark.slow
def test_many_at_once_make_it_once(large, tmp_path, start):
    path = tmp_path / "images_x2.rdn_fast.h5"
    processes = [start(large) for _ in range(4)]
    let_go(*processes)
    told, last = zip(*map(ended, processes), strict=True)
    assert set(last) == {str(path)}
    assert sum(MADE in out for out in told) == 1
    assert len(PairedH5(path, 2)) == 120
    assert all_in(tmp_path) == ["images", path.name]


@pytest.mark.slow
def test_who_waits_for_a_process_that_is_killed_makes_it(large, tmp_path, start):
    path = tmp_path / "images_x2.rdn_fast.h5"
    first, *others = (start(large) for _ in range(3))
    let_go(first)
    half_written = stop_half_way(first, path)
    for other in others:
        let_wait(other, large, path)
    first.kill()
    told, last = zip(*map(ended, others), strict=True)
    assert last == (str(path), str(path))
    assert sum(MADE in out for out in told) == 1
    assert not half_written.exists()
    assert len(PairedH5(path, 2)) == 120
    assert all_in(tmp_path) == ["images", path.name]


@pytest.mark.slow
def test_who_comes_when_a_process_gave_up_waits_for_its_heir(image_folder, photograph, tmp_path, start):
    picture = photograph(800, 800)  # so large that nobody is done before it is stopped, on a busy machine either
    large = image_folder({f"{i}.png": picture for i in range(24)})
    path = tmp_path / "images_x2.rdn_fast.h5"
    first, heir, late = (start(large) for _ in range(3))
    let_go(first)
    half_written = stop_half_way(first, path)
    let_wait(heir, large, path)
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGCONT)
    stop_half_way(heir, path, half_written)
    let_wait(late, large, path)
    heir.send_signal(signal.SIGCONT)
    assert MADE in ended(heir)[0]
    assert ended(late) == (f"{path}\n", str(path))
    assert len(PairedH5(path, 2)) == 120
    first.wait()
    assert all_in(tmp_path) == ["images", path.name]


def test_killed_process_leaves_no_lock_and_no_file_that_is_taken(large, tmp_path, capsys, start):
    path = tmp_path / "images_x2.rdn_fast.h5"
    process = start(large)
    let_go(process)
    half_written = stop_half_way(process, path)
    process.kill()
    process.wait()
    assert half_written.exists()
    assert not path.exists()
    assert training_file(large, 2) == path
    told = capsys.readouterr().out
    assert "waiting" not in told
    assert MADE in told
    assert len(PairedH5(path, 2)) == 120
    assert all_in(tmp_path) == ["images", path.name]


def test_ctrl_c_leaves_nothing(large, tmp_path, start):
    process = start(large)
    let_go(process)
    stop_half_way(process, tmp_path / "images_x2.rdn_fast.h5")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=PATIENCE)
    assert "KeyboardInterrupt" in err
    assert all_in(tmp_path) == ["images"]


def test_the_root_has_no_place_beside_it(monkeypatch):
    (place,) = module._places(module._Source("/", 2, PLAIN, None))
    assert place == cache_folder() / place.name

"""Paths that are too long, not readable, no files, of any bytes: one line each, and the rest is made."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT, TINY, assert_user_error, cli, command, make_data, photograph
from waiting import PATIENCE

import rdn_fast
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError, why_no_file, why_no_folder
from rdn_fast.model import RDN

SMALL = ROOT / "rdn_fast" / "weights" / "small_x2.safetensors"
TRAIN = ("train", *TINY, "--rdb", "naive", "--max-steps", 2)
# As root without its powers, of whom files are, and for whom they are read-only.
ORDINARY = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.geteuid() == 0 else ()
ordinary_user = pytest.mark.skipif(
    bool(ORDINARY) and shutil.which("setpriv") is None, reason="nothing is read-only to root, and there is no setpriv"
)
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """tmp_path, with a picture a.png, weights w.pth, three pictures in set/, and data/DIV2K_x2.h5 and Set5_x2.h5."""
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data", images=4)
    (tmp_path / "set").mkdir()
    for i in range(3):
        Image.fromarray(photograph(40, 36, seed=i)).save(f"set/p{i}.png")
    Image.fromarray(photograph(20, 18)).save("a.png")
    torch.manual_seed(0)
    torch.save(RDN(ModelConfig(2, 6, 4, 2, 2)).state_dict(), "w.pth")
    return tmp_path


@pytest.fixture
def closed(folder):
    """folder, with a folder closed/ that an ordinary user can neither list nor enter."""
    shutil.copytree("set", "closed")
    shutil.copy("w.pth", "closed")
    shutil.copy("data/Set5_x2.h5", "closed")
    os.chmod("closed", 0)
    yield folder
    os.chmod("closed", 0o700)


def ordinary(*arguments) -> subprocess.CompletedProcess:
    """Run rdn-fast as a user who may not read everything."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [*ORDINARY, *command(*arguments)]
    return subprocess.run(words, capture_output=True, encoding="utf-8", env=environment, timeout=PATIENCE, check=False)


# ---- flags that take a path ----

EVAL = ("eval", "-w", "w.pth", "--eval-file", "set")
FLAGS = {
    "-i": ("upscale", "-w", "w.pth", "-o", "out", "-i", "{}"),
    "-i *": ("upscale", "-w", "w.pth", "-o", "out", "-i", "{}/*.png"),
    "-o": ("upscale", "-w", "w.pth", "-i", "a.png", "-o", "{}"),
    "-o file": ("upscale", "-w", "w.pth", "-i", "a.png", "-o", "{}/a.png"),
    "-w": ("upscale", "-i", "a.png", "-o", "out", "-w", "{}"),
    "-w file": ("upscale", "-i", "a.png", "-o", "out", "-w", "{}/w.pth"),
    "--eval-file": ("eval", "-w", "w.pth", "--eval-file", "{}"),
    "--eval-file h5": ("eval", "-w", "w.pth", "--eval-file", "{}/Set5_x2.h5"),
    "--data": ("eval", "-w", "w.pth", "--data", "{}"),
    **{f"--{flag}": (*EVAL, f"--{flag}", "{}/x.png") for flag in ("json", "csv", "markdown", "figure", "save-images")},
    "convert from": ("convert", "{}/w.pth", "out.pth"),
    "convert to": ("convert", "w.pth", "{}/out.pth"),
    "export": ("export", "-w", "w.pth", "-o", "{}/out.onnx"),
    "--images-dir": ("prepare", "--images-dir", "{}", "--output-path", "out.h5"),
    "--output-path": ("prepare", "--images-dir", "set", "--output-path", "{}/out.h5"),
    "--repack from": ("prepare", "--repack", "{}/Set5_x2.h5", "out.h5"),
    "--repack to": ("prepare", "--repack", "data/Set5_x2.h5", "{}/out.h5"),
    "--data-path": (*TRAIN, "--data-path", "{}"),
    "--train-file": (*TRAIN, "--train-file", "{}/Set5_x2.h5"),
    "--train-dir": (*TRAIN, "--train-dir", "{}"),
    "train --eval-file": (*TRAIN, "--train-file", "data/DIV2K_x2.h5", "--eval-file", "{}"),
    "train --weights-file": (*TRAIN, "--train-file", "data/DIV2K_x2.h5", "--weights-file", "{}/w.pth"),
    "train --resume": (*TRAIN, "--train-file", "data/DIV2K_x2.h5", "--resume", "{}/step_2.pt"),
    "--outputs-dir": (*TRAIN, "--train-file", "data/DIV2K_x2.h5", "--outputs-dir", "{}/run"),
}


def with_path(flag: str, path: str) -> list[str]:
    return [word.replace("{}", path) if isinstance(word, str) else word for word in FLAGS[flag]]


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("long", ["n" * 300, "/".join(["n" * 250] * 20)], ids=["name", "path"])
def test_a_path_that_is_too_long(folder, request, flag, long):
    # In this process: the commands start in two seconds each.
    ended = request.getfixturevalue("cli")(*with_path(flag, long))
    message = ended.user_error()
    assert "n" * 100 in message
    if flag != "-i *":  # a pattern that matches nothing
        assert "too long" in message


@ordinary_user
@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS)
def test_a_folder_that_may_not_be_read(closed, flag):
    ended = ordinary(*with_path(flag, "closed"))
    assert_user_error(ended, "closed")
    assert "ermission denied" in ended.stderr or "cannot be read" in ended.stderr


@ordinary_user
@pytest.mark.parametrize("flag", ["-i", "--json"])
def test_a_folder_that_may_not_be_read_in_the_flags_used_most(closed, flag):
    test_a_folder_that_may_not_be_read(closed, flag)


@pytest.mark.slow
@ordinary_user
def test_of_many_pictures_only_the_unreadable_fail(closed):
    os.chmod("set/p1.png", 0)
    shutil.move("closed", "set/closed")
    ended = ordinary("upscale", "-w", "w.pth", "-i", "set", "-o", "out", "-r")
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "failed set/p1.png: cannot be read (Permission denied)" in ended.stdout or (
        "failed set/p1.png: Permission denied" in ended.stdout
    )
    assert "failed set/closed: cannot be read (Permission denied); make it readable" in ended.stdout
    assert sorted(path.name for path in Path("out").rglob("*.*")) == ["p0_out.png", "p2_out.png"]
    ended = ordinary("prepare", "--images-dir", "set", "-r", "--output-path", "t.h5")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "skipped set/p1.png: Permission denied" in ended.stdout
    assert "skipped set/closed: is a folder that cannot be read" in ended.stdout
    assert "10 pairs from 2 images at x2, 2 files skipped" in ended.stdout
    ended = ordinary("eval", "-w", "w.pth", "--eval-file", "set")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "skipped set/p1.png: Permission denied" in ended.stdout
    shutil.move("set/closed", "closed")


@pytest.mark.slow
@ordinary_user
def test_a_folder_that_takes_files_and_cannot_be_opened(folder):
    # It cannot be synced: what was written was then said not to be.
    Path("drop").mkdir()
    os.chmod("drop", 0o300)
    try:
        for words in (
            ("upscale", "-w", "w.pth", "-i", "a.png", "-o", "drop/b.png"),
            ("convert", "w.pth", "drop/v.pth"),
            ("prepare", "--images-dir", "set", "--output-path", "drop/t.h5"),
            (*EVAL, "--json", "drop/r.json"),
        ):
            ended = ordinary(*words)
            assert (ended.returncode, ended.stderr) == (0, ""), ended
    finally:
        os.chmod("drop", 0o700)
    assert sorted(path.name for path in Path("drop").iterdir()) == ["b.png", "r.json", "t.h5", "v.pth"]


@pytest.mark.slow
@ordinary_user
def test_outputs_in_a_folder_that_may_not_be_written(folder):
    Path("locked").mkdir(mode=0o500)
    for words in (
        ("upscale", "-w", "w.pth", "-i", "a.png", "-o", "locked"),
        ("upscale", "-w", "w.pth", "-i", "a.png", "-o", "locked/out"),
        ("prepare", "--images-dir", "set", "--output-path", "locked/out.h5"),
    ):
        assert_user_error(ordinary(*words), "locked", "cannot be written")
    shutil.move("set", "locked/set")
    os.chmod("locked", 0o500)
    # The folder's h5 then lies in the cache folder, not beside it.
    ended = ordinary(*TRAIN, "--train-dir", "locked/set", "--outputs-dir", "run")
    assert (ended.returncode, ended.stderr) == (0, "")
    os.chmod("locked", 0o700)
    assert [path.name for path in Path("locked").iterdir()] == ["set"]


# ---- what is no regular file ----


@pytest.fixture
def odd(folder):
    """set/ with one picture, and a pipe, a socket, a link to itself, a link to nothing and a folder called .png."""
    for name in ("p1.png", "p2.png"):
        os.unlink(f"set/{name}")
    os.mkfifo("set/pipe.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("set/socket.png")
    os.symlink("loop.png", "set/loop.png")
    os.symlink("nothing", "set/dangling.png")
    Path("set/folder.png").mkdir()
    return folder


ODD = {
    "pipe": "is a pipe",
    "socket": "is a socket",
    "loop": "cannot be read (Too many levels of symbolic links)",
    "dangling": "is a link to nothing",
}


@pytest.mark.parametrize("source", ["set", "set/*.png"])
def test_upscale_names_what_is_no_file_and_makes_the_rest(odd, source):
    ended = cli("upscale", "-w", "w.pth", "-i", source, "-o", "out")
    assert (ended.returncode, ended.stderr) == (1, "")
    for name, reason in ODD.items():
        if name in ("pipe", "socket") or source == "set":  # a pattern matches no broken link before Python 3.13
            assert f"failed set/{name}.png: {reason}" in ended.stdout
    assert [path.name for path in Path("out").iterdir()] == ["p0_out.png"]


@pytest.mark.slow
def test_prepare_eval_and_train_name_what_is_no_file_and_take_the_rest(odd):
    for words in (
        ("prepare", "--images-dir", "set", "--output-path", "t.h5"),
        ("eval", "-w", "w.pth", "--eval-file", "set"),
        (*TRAIN, "--train-dir", "set"),
    ):
        ended = cli(*words)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        for name, reason in ODD.items():
            assert f"skipped set/{name}.png: {reason}" in ended.stdout


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_by_its_name(odd, request, kind):
    name, main = f"set/{kind}.png", request.getfixturevalue("cli")
    for words in (
        ("upscale", "-w", "w.pth", "-i", name, "-o", "out"),
        ("upscale", "-w", name, "-i", "a.png", "-o", "out"),
        ("eval", "-w", "w.pth", "--eval-file", name),
        ("convert", name, "out.pth"),
        ("prepare", "--repack", name, "out.h5"),
        (*TRAIN, "--train-file", name),
        (*TRAIN, "--train-file", "data/DIV2K_x2.h5", "--weights-file", name),
    ):
        assert f"{name}: {ODD[kind]}" in main(*words).user_error()
    with pytest.raises(UserError, match="set/"):
        rdn_fast.upscale(name, "w.pth")


def test_a_device_is_no_file():
    assert why_no_file("/dev/null") == "is a device"
    assert why_no_folder("/dev/null/x") == "no such folder"
    assert why_no_folder(__file__) == "is a file"
    assert why_no_file(__file__) is None
    assert why_no_file("a\0b").startswith("cannot be a name (")


# ---- names of any bytes, in any locale ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "locale"),
    [(b"caf\xe9", {}), ("图片".encode(), C_LOCALE), (b"caf\xe9", C_LOCALE)],
    ids=["Latin 1", "Chinese in the C locale", "Latin 1 in the C locale"],
)
def test_names_of_any_bytes(folder, name, locale):
    here = os.fsdecode(name)
    Path(here).mkdir()
    for source, target in (("a.png", f"{here}.png"), ("set/p0.png", "p.png"), (SMALL, f"{here}.pth")):
        shutil.copy(source, f"{here}/{target}")
    shutil.copy("data/DIV2K_x2.h5", here)
    shutil.copy("data/Set5_x2.h5", here)
    tables = ("--json", f"{here}.json", "--csv", f"{here}.csv", "--markdown", f"{here}.md", "--figure", f"{here}.png")
    for words in (
        ("upscale", "-w", f"{here}/{here}.pth", "-i", here, "-o", f"out{here}", "--ext", "png"),
        ("convert", f"{here}/{here}.pth", f"{here}.safetensors"),
        ("eval", "-w", f"{here}.safetensors", "--eval-file", here, *tables, "--save-images", f"saved{here}"),
        ("eval", "-w", "w.pth", "--eval-file", f"{here}/Set5_x2.h5"),
        ("prepare", "--images-dir", here, "--output-path", f"{here}.h5"),
        ("prepare", "--repack", f"{here}.h5", f"2{here}.h5"),
        (*TRAIN, "--data-path", here, "--outputs-dir", f"run{here}"),
        (*TRAIN, "--data-path", here, "--outputs-dir", f"run{here}", "--resume", "auto", "--max-steps", 3),
    ):
        ended = cli(*words, env=locale)
        assert (ended.returncode, ended.stderr) == (0, ""), (words, ended)
    assert_user_error(cli("upscale", "-i", f"no{here}", "-o", "out", env=locale), "no such file")
    assert len(list(Path(f"out{here}").iterdir())) == 2
    assert len(list(Path(f"saved{here}").rglob("*.png"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_train_with_a_cache_folder_of_any_name(folder, variable):
    environment = {"XDG_CACHE_HOME": "", variable: os.fsdecode(os.fsencode(folder) + b"/caf\xe9")}
    Path(environment[variable]).mkdir()
    ended = cli(*TRAIN, "--data-path", "data", "--outputs-dir", "run", env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert any(Path(environment[variable]).rglob("patches-*.so"))


@pytest.mark.slow
def test_metadata_of_weights_in_the_c_locale(folder):
    assert cli("convert", "w.pth", "v.safetensors", "--metadata", "licence=图", env=C_LOCALE).returncode == 0
    assert "图".encode() in Path("v.safetensors").read_bytes()
    ended = cli("convert", "w.pth", "u.safetensors", "--metadata", os.fsdecode(b"licence=\xe9"))
    assert_user_error(ended, "--metadata", "UTF-8")


# ---- files that another program has open ----


def test_an_h5_file_that_another_program_writes_to(folder, request):
    main, before = request.getfixturevalue("cli"), Path("data/Set5_x2.h5").read_bytes()
    with h5py.File("data/Set5_x2.h5", "r+"):
        for words in (
            ("eval", "-w", "w.pth", "--eval-file", "data/Set5_x2.h5"),
            (*TRAIN, "--data-path", "data"),
            ("prepare", "--repack", "data/Set5_x2.h5", "new.h5"),
            ("convert", "data/Set5_x2.h5", "v.pth"),
        ):
            held = cli(*words)  # HDF5 lets one process open a file twice
            assert_user_error(held, "data/Set5_x2.h5: is locked by another program", "lsof")
            assert "prepare it again" not in held.stderr
            assert "damaged" not in held.stderr
    assert Path("data/Set5_x2.h5").read_bytes() == before
    assert main("eval", "-w", "w.pth", "--eval-file", "data/Set5_x2.h5").code == 0


# ---- forked processes ----


def _in_a_child(work) -> bytes:
    """Return what work() returns in a forked child. Fail when it takes more than a minute."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, work())
        finally:
            os._exit(0)
    os.close(writer)
    killer = threading.Timer(60, os.kill, (child, 9))
    killer.start()
    with open(reader, "rb") as file:
        result = file.read()
    os.waitpid(child, 0)
    killer.cancel()
    return result


FORKING = """
import os, sys
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(2)
from test_paths_of_any_kind import {name}
print({name}({argument!r}))
"""


def _forking(name: str, argument: str) -> str:
    """Call a function of this file in a process of its own with two threads. Return what it prints."""
    code = FORKING.format(tests=str(ROOT / "tests"), name=name, argument=argument)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    words = [os.sys.executable, "-W", "ignore", "-c", code]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    assert ended.returncode == 0, ended
    return ended.stdout.strip()


def block_in_parent_and_child(impl: str) -> float:
    torch.set_num_threads(2)
    model = rdn_fast.load_model()
    x = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))

    def compute() -> torch.Tensor:
        with torch.inference_mode(), model.computing(None, impl):
            return model(x)

    here = compute()
    there = np.frombuffer(_in_a_child(lambda: compute().numpy().tobytes()), np.float32)
    return float(np.abs(here.numpy().ravel() - there).max())


@pytest.mark.parametrize(
    "impl", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("naive", "sliced", "summed")), "winograd"]
)
def test_a_forked_child_computes(impl):
    # OpenMP's threads stay in the parent, and a child waited for them for ever.
    assert float(_forking("block_in_parent_and_child", impl)) < 1e-5


def upscale_in_parent_and_child(when: str) -> bool:
    """Up-scale here and in a child that is forked after that, or while another thread up-scales ("during")."""
    torch.set_num_threads(2)
    image = photograph(32, 32)
    here = np.asarray(rdn_fast.upscale(image)).astype(int)
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            rdn_fast.upscale(image)

    thread = threading.Thread(target=go_on)
    if when == "during":
        thread.start()
        time.sleep(0.2)
    try:
        there = np.frombuffer(_in_a_child(lambda: np.asarray(rdn_fast.upscale(image)).tobytes()), np.uint8)
    finally:
        stop.set()
    again = np.asarray(rdn_fast.upscale(image)).astype(int)  # the parent is as before
    return bool(np.abs(here.ravel() - there).max() <= 1 and (here == again).all() and torch.get_num_threads() == 2)


@pytest.mark.parametrize("when", [pytest.param("after", marks=pytest.mark.slow), "during"])
def test_upscale_in_a_forked_child(when):
    assert _forking("upscale_in_parent_and_child", when) == "True"

"""native.library: C files are compiled at first use, once, and loaded."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from waiting import PATIENCE

from rdn_fast import native

pytestmark = pytest.mark.skipif(native.compiler() is None, reason=native.NO_COMPILER)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Use an empty cache folder, and forget the loaded libraries."""
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def test_no_compiler_is_said(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(native.CannotBuild, match="needs a C compiler"):
        native.library(fresh / "any.c")


def test_a_library_that_others_may_write_is_not_loaded(fresh):
    source = fresh / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    native.library(source)
    (built,) = fresh.glob("answer-*.so")
    other = source.with_name("other.c")
    other.write_text("int answer(void) { return 13; }\n")
    built.unlink()
    subprocess.run(["gcc", "-shared", "-fPIC", str(other), "-o", str(other.with_suffix(".so"))], check=True)
    digest = hashlib.sha256(other.with_suffix(".so").read_bytes()).hexdigest()[:16]
    theirs = other.with_suffix(".so").rename(built.with_name(f"{built.stem.rpartition('-')[0]}-{digest}.so"))
    theirs.chmod(0o777)
    native.library.cache_clear()
    assert native.library(source).answer() == 42


def test_what_the_compiler_says_is_passed_on_and_nothing_is_left(fresh):
    source = fresh / "broken.c"
    source.write_text("int f(void) { return none; }\n")
    with pytest.raises(native.CannotBuild, match=r"could not be compiled: .*none.* undeclared"):
        native.library(source)
    assert list(fresh.iterdir()) == [source]


def test_a_library_is_built_once_and_again_when_its_source_changes(fresh):
    source = fresh / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    assert native.library(source).answer() == 42
    (built,) = fresh.glob("answer-*.so")
    stamp = built.stat().st_mtime_ns
    native.library.cache_clear()
    assert native.library(source).answer() == 42
    assert built.stat().st_mtime_ns == stamp
    source.write_text("int answer(void) { return 43; }\n")
    native.library.cache_clear()
    assert native.library(source).answer() == 43
    assert len(list(fresh.glob("answer-*.so"))) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"not a library",
        lambda content: content[: len(content) // 2],  # a copy that was killed; a full disk
        lambda content: content[:4096],
        lambda content: content[:4096] + bytes(len(content) - 4096),  # a machine that went down
        lambda content: b"",
    ],
    ids=["other", "half", "a page", "zeros", "empty"],
)
def test_a_damaged_library_is_built_anew(fresh, damage):
    source = fresh / "answer.c"
    source.write_text("static char much[50000] = {1}; int answer(void) { return 41 + much[0]; }\n")
    (first,) = _answers(fresh, source, processes=1)
    (built,) = (fresh / "rdn_fast").glob("answer-*.so")
    whole = built.read_bytes()
    built.write_bytes(damage(whole))
    assert [first, *_answers(fresh, source, processes=3)] == ["42\n"] * 4
    assert built.read_bytes() == whole
    assert list(built.parent.iterdir()) == [built]


def _answers(cache: Path, source: Path, processes: int) -> list[str]:
    """Return what that many processes print that call the source's function at the same time."""
    code = f"from rdn_fast import native; print(native.library(native.Path({str(source)!r})).answer())"
    words, environment = [sys.executable, "-c", code], _environment(cache)
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(processes)]
    return [process.communicate(timeout=PATIENCE)[0] for process in started]


@pytest.mark.parametrize("encoding", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_folders_whose_names_are_not_text(fresh, encoding):
    # The name of a mapped file is in /proc/self/maps, where torch's OpenMP runtime is looked up.
    folder = fresh / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    source = folder / "answer.c"
    source.write_text("int answer(void) { return 42; }  // \N{GREEK SMALL LETTER ALPHA}\n", encoding="utf-8")
    code = """
import mmap, pathlib, sys, torch
from rdn_fast import native
source = pathlib.Path(sys.argv[1])
with source.open("rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    print(native.library(source).answer())
"""
    words = [sys.executable, "-c", code, str(source)]
    done = subprocess.run(words, env=_environment(folder) | encoding, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"42\n", b"")


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(runs.ROOT)}

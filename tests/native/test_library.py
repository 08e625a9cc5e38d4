"""native.library: C files are compiled at first use, once, and loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs

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
    source.with_name("other.c").write_text("int answer(void) { return 13; }\n")
    built.unlink()
    subprocess.run(["gcc", "-shared", "-fPIC", str(source.with_name("other.c")), "-o", str(built)], check=True)
    built.chmod(0o777)
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


def test_a_damaged_library_is_built_anew(fresh):
    source = fresh / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    subprocess.run(
        [sys.executable, "-c", f"from rdn_fast import native; native.library(native.Path({str(source)!r}))"],
        check=True,
        env=_environment(fresh),
    )
    (built,) = (fresh / "rdn_fast").glob("answer-*.so")
    built.write_bytes(b"not a library")
    again = f"print(native.library(native.Path({str(source)!r})).answer())"
    done = subprocess.run(
        [sys.executable, "-c", f"from rdn_fast import native; {again}"],
        check=True,
        env=_environment(fresh),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "42\n"


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(runs.ROOT)}

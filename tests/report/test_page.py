"""The page of runs as a file: whole, inert, small, and one line for a user's mistakes."""

import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from rdn_fast.report.words import decibels, number, words

EVIL = "<script>document.title='hit'</script>\"'&\u202e\udcff"
VOID = {"meta", "input", "img", "br", "path"}


class Elements(HTMLParser):
    """Collects tags and attributes, and checks that every element is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def elements(text: str) -> list[tuple[str, dict]]:
    return Elements(text).found


@pytest.fixture
def report(cli):
    """Write a report and return its text, checked for what every page must be."""

    def run(*folders, output=None):
        ended = cli("report", *folders, *(("-o", output) if output else ()))
        assert (ended.code, ended.err) == (0, "")
        file = output or folders[0] / "report.html"
        assert str(file) in ended.out
        text = file.read_text("utf-8")
        found = elements(text)
        assert len(text) < 5e6
        assert [tag for tag, _ in found].count("script") == 1
        for tag, attributes in found:
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href", "data", "action"):
                assert attributes.get(name, "data:image/png;").startswith("data:image/png;")
            if tag == "img":
                assert attributes["alt"]
            if tag == "svg":
                assert attributes["role"] == "img"
                assert attributes["aria-label"]
        assert "url(" not in text
        return text

    return run


def test_a_page_shows_everything(report, make_run):
    text = report(make_run(more=[{"event": "resume", "step": 300, "date": "2026-01-02", "torch": "2.13.1"}]))
    for shown in ("x2 D4 C3 G16 G0 32", "300 of 300", "33.93 dB", "2026-01-02", "resumes (1)", "over minutes", "bird"):
        assert shown in text, shown
    found = elements(text)
    assert [attributes["data-key"] for tag, attributes in found if attributes.get("class") == "shot"] == [
        *("bicubic", "step-10", "step-300", "hr"),
        *("bicubic", "step-300", "hr") * 2,
    ]
    assert sum(tag == "svg" for tag, _ in found) == 8  # four charts, two axes


def test_names_are_inert(report, make_run, tmp_path):
    folder = make_run("run <img src=x onerror=alert(1)>", picture=EVIL, more=[
        {"event": "resume", "step": 300, EVIL: EVIL, "device": EVIL, "recipe": {EVIL: EVIL}, "rdb": {EVIL: EVIL}},
    ])  # fmt: skip
    text = report(folder)
    assert "<script>document" not in text
    assert text.count("&lt;script&gt;document") > 5
    assert "\u202e" not in text
    two = report(folder, make_run("b"), output=tmp_path / "two.html")
    assert "<script>document" not in two


def test_several_runs_share_the_plots(report, cli, make_run, tmp_path):
    runs = [make_run(name, steps=steps) for name, steps in (("a", 300), ("b", 50), ("c", 9))]
    text = report(*runs, output=tmp_path / "cmp.html")
    found = [attributes for tag, attributes in elements(text) if tag == "path" and "data-label" in attributes]
    for i in range(3):
        assert any(each["class"] == f"line r{i}" for each in found)
    assert text.count('<section class="pictures"') == 3  # side by side, a, b; none of c is as old as its log
    keys = [attributes["data-key"] for _, attributes in elements(text) if attributes.get("class") == "shot"]
    assert keys[:4] == ["bicubic", "run-0", "run-1", "hr"]
    assert {*re.findall(r'class="chip r\d">([^<]*)<', text)} == {"a", "b", "c"}
    again = make_run("other/a")  # another run of this name
    assert f'class="chip r1">{words(again)}<' in report(runs[0], again, output=tmp_path / "cmp.html")
    assert "-o FILE.html is missing" in cli("report", *runs).user_error()


@pytest.mark.parametrize("steps", [0, 1, 9])
def test_runs_that_have_hardly_begun(report, make_run, steps):
    text = report(make_run(steps=steps, sheets=()))
    assert "no epoch has ended yet" in text or "no finite value yet" in text
    assert "a run without validation keeps none" in text


def test_a_run_without_any_finite_value(report, make_run):
    lines = [{"event": "step", "step": i, "lr": None, "loss": None, "skipped": True} for i in range(1, 20)]
    text = report(make_run(steps=0, sheets=(), more=lines))
    assert "skipped steps (19)" in text


def test_an_empty_run(report, make_run):
    folder = make_run()
    (folder / "metrics.jsonl").write_bytes(b"")
    assert "holds no step yet" in report(folder)


@pytest.mark.slow
def test_a_very_long_run_is_a_small_page(report, make_run):
    folder = make_run(steps=100_000, sheets=(100_000,), per_epoch=20)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "step": 100001, "lr": 1e-3, "loss": 77}\n')
    began = time.monotonic()
    text = report(folder)
    print(f"{time.monotonic() - began:.1f} s, {len(text) / 1e6:.2f} MB")
    assert len(text) < 1e6
    assert "100,001" in text


def test_only_own_pages_are_replaced(cli, make_run, tmp_path):
    folder = make_run()
    for _ in range(2):
        assert cli("report", folder).code == 0
    for name in ("metrics.jsonl", "validation_crops/step_00000300.png"):
        before = (folder / name).read_bytes()
        assert "give another name" in cli("report", folder, "-o", folder / name).user_error()
        assert (folder / name).read_bytes() == before
    assert "is a folder" in cli("report", folder, "-o", folder).user_error()
    assert "cannot be written" in cli("report", folder, "-o", tmp_path / "no" / "x.html").user_error()
    assert "no such folder" in cli("report", tmp_path / "missing").user_error()


def test_numbers_in_words():
    assert [number(value) for value in (1500, 0.0125, 2e-5, np.nan, 33.6666, 12345.67)] == [
        *("1,500", "0.0125", "2e-05", "–", "33.67", "12,345.7"),
    ]
    assert [decibels(value) for value in (33.666, np.nan, np.inf)] == ["33.67 dB", "–", "equal"]
    assert decibels(0.5, sign=True) == "+0.50 dB"
    assert re.fullmatch(r"[^<>\"']*", words(EVIL))

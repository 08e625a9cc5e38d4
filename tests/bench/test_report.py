"""Tables and figures rendered from rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from bench_rows import make_row, short

from bench import cases, plots, report, results
from bench.case import RDN_B_SHAPE

CPU = torch.device("cpu")


MARKED = (
    "before\n<!-- bench:gates -->\nold\n<!-- /bench -->\nbetween <!-- bench:speeds --><!-- /bench -->\n"
    "<!-- bench:figures --><!-- /bench -->\n<!-- bench:loading --><!-- /bench -->\nafter\n"
)


def render(text: str, *runs, chinese: bool = False) -> str:
    return short(report.render(text, list(runs), {}, "bench/figures", chinese))


def test_without_rows_everything_is_not_measured():
    text = report.render(MARKED, [], {}, "bench/figures")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("not measured") == sum(len(case.gates) for case in cases.load().values()) + 3
    assert report.render(text, [], {}, "bench/figures") == text


@pytest.mark.parametrize(("chinese", "words"), [(False, "not measured"), (True, "未测")])
def test_without_rows_the_summary_is_not_measured(chinese, words):
    text = render("<!-- bench:summary --><!-- /bench -->", chinese=chinese)
    assert text.count(words) == len(report.SUMMARY)
    assert "training" not in text or not chinese


def sample_run(**changes) -> list[results.Row]:
    return [
        make_row(case="ceiling", recipe="conv", batch=0, shape="", gflops=200.0, **changes),
        make_row(recipe="reference", precision="", gflops=120.0, **changes),
        make_row(**changes, ceiling_share=1.665),
        make_row(recipe="impl naive", precision="", gflops=121.0, **changes),
    ]


def test_tables_and_figures_show_the_newest_run_of_a_device():
    old, new = sample_run(), sample_run(date="2026-02-02T00:00:00")
    new[2] = dataclasses.replace(new[2], vs_reference=2.71, gflops=333.0)  # of a ceiling of 200
    text = render(MARKED, old, new)
    claim = "CPU, training step, default precision / reference (fp32)"
    assert f"| {claim} | 2.4 | 2.9 | **2.71** | Some CPU, 2 threads, AVX2 | 2026-02-02 abc |" in text
    assert "| training step | 8 | **rdn_fast** | float32 | 4 | 333 | 166% | 2.71x | 1.50x |  | 2026-02-02 abc |" in text
    assert text.count("**rdn_fast**") == 1
    assert "impl naive" not in text  # that is for the figure
    ((name, (_, figure)),) = report.charts([old, new]).items()
    assert f"![rdn-b on Some CPU, 2 threads, AVX2](bench/figures/{name})" in text
    assert [bar.value for bar in figure.panels[0].bars] == [120, 333, 121]
    assert figure.panels[0].bars[1].least == pytest.approx(333 / 1.125)
    assert figure.panels[0].ceilings == {"float32": 200.0}
    assert figure.title == "rdn-b on Some CPU, 2 threads, AVX2"
    assert figure.panels[0].title == "training step, float32, batch 8, 32x32"


def loading_run() -> list[results.Row]:
    given = {
        "case": "loading",
        "precision": "",
        "batch": 64,
        "shape": "DIV2K-sized, 32x32",
        "gflops": None,
        "vs_stock": None,
    }
    slow = make_row(**given, recipe="reference 2 workers", images_s=1000.4, vs_reference=1.0)
    fast = make_row(**given, recipe="rdn_fast resident", images_s=61234.0, vs_reference=61.2)
    paced = make_row(**given | {"case": "paced loading"}, images_s=4266.0, vs_reference=None, waited=0.00123)
    return [slow, dataclasses.replace(slow, recipe="reference", note="2 workers"), fast, paced]


def test_loaders_have_a_table_and_a_figure_of_their_own():
    text = render(MARKED, sample_run(), loading_run())
    alone = render(MARKED, sample_run())
    assert text.split("<!-- bench:loading -->")[1].split("\n\n")[2:4] == [
        "\n".join(
            [
                "| case | recipe | patches/s | of the ceiling | vs reference | vs stock | time waited | when |",
                "| --- | --- | --- | --- | --- | --- | --- | --- |",
                "| loading | reference (2 workers) | 1,000 |  | 1.00x |  |  | 2026-01-02 abc |",
                "| loading | **rdn_fast resident** | 61,234 |  | 61.20x |  |  | 2026-01-02 abc |",
                "| paced loading | **rdn_fast** | 4,266 |  |  |  | 0.12% | 2026-01-02 abc |",
            ]
        ),
        "![loaders on Some CPU, 2 threads, AVX2](bench/figures/loading_Some-CPU-2-threads-AVX2.svg)",
    ]
    for name in ("speeds", "figures"):
        block = f"<!-- bench:{name} -->.*?<!-- /bench -->"
        assert report.re.findall(block, text, report.re.DOTALL) == report.re.findall(block, alone, report.re.DOTALL)
    _, figure = report.charts([sample_run(), loading_run()])["loading_Some-CPU-2-threads-AVX2.svg"]
    assert [(bar.recipe, bar.value) for bar in figure.panels[0].bars] == [
        ("reference 2 workers", 1000.4),
        ("rdn_fast resident", 61234.0),
    ]
    assert figure.panels[0].unit.startswith("patches/s")


def test_a_missed_gate_is_shown_as_missed():
    rows = sample_run()
    rows[2] = dataclasses.replace(rows[2], vs_reference=1.2)
    assert "**1.2** (missed)" in report.gates_table([rows])


def test_unsteady_rows_are_shown_as_unsteady():
    rows = sample_run()
    rows[2] = dataclasses.replace(rows[2], unsteady="rounds spread 1.42x")
    assert "**2.5** (unsteady)" in report.gates_table([rows])
    assert "| **rdn_fast** (unsteady) | float32 |" in render(MARKED, rows)
    summary = short(report.summary_table([rows], {}))
    assert "| training step | 8 | **4 /s** (unsteady) |" in summary
    (((_, figure)),) = report.charts([rows]).values()
    assert [bar.label for bar in figure.panels[0].bars] == ["reference", "rdn_fast (unsteady)", "impl naive"]


def test_unknown_markers_are_named():
    with pytest.raises(ValueError, match="bench:speed -->"):
        render("<!-- bench:speed --><!-- /bench -->")
    with pytest.raises(ValueError, match="bench:gates -->: there are summary, quality"):
        render("<!-- bench:gates --><!-- /bench -->", chinese=True)


def test_the_real_readmes_have_the_same_markers():
    found = {
        path.name: report.re.findall(r"<!-- (/?bench\S*) -->", path.read_text(encoding="utf-8"))
        for path in report.pages()
    }
    assert found["README.md"] == found["README.zh-CN.md"]
    assert {"bench:gates", "bench:speeds", "bench:figures", "bench:loading"} <= {
        name for names in found.values() for name in names
    }


def test_the_summary_names_the_reference_and_the_strongest_other():
    given = {"place": "cpu", "case": "inference", "batch": 1, "shape": f"{RDN_B_SHAPE}, 128x128"}
    slow = make_row(**given, recipe="reference", images_s=0.2, vs_reference=1.0)
    stock = make_row(**given, recipe="stock", images_s=0.22, vs_reference=1.1)
    other = make_row(**given, recipe="ONNX Runtime", images_s=0.24, vs_reference=1.2)
    ours = make_row(**given, images_s=0.53, vs_reference=2.64)
    empty = {"seconds": None, "seconds_min": None, "images_s": None}
    large = make_row(place="cpu", case="memory", recipe="reference", batch=16, peak_mb=4000.0, peak_share=1.0, **empty)
    half = dataclasses.replace(large, recipe="stock", dtype="bfloat16", peak_mb=2000.0, peak_share=0.5)
    lean = dataclasses.replace(large, recipe="rdn_fast", peak_mb=900.0, peak_share=0.225)
    table = short(report.summary_table([[slow, stock, other, ours, large, half, lean]], {})).splitlines()
    assert len(table) == 2 + 6
    where = "float32 | Some CPU, 2 threads, AVX2 | 2026-01-02 abc |"
    best = "ONNX Runtime: 0.24 /s (2.21x)"
    assert f"| inference, 128x128 | 1 | **0.53 /s** | 0.2 /s (2.65x) | {best} | {where}" in table
    best = "stock bfloat16: 2,000 MB (45%)"
    assert f"| memory of a training step | 16 | **900 MB** | 4,000 MB (22%) | {best} | {where}" in table
    assert "| training step | 8 | not measured |  |  |  |  |  |" in table
    assert "| 训练步 | 8 | 未测 |  |  |  |  |  |" in short(report.summary_table([], report.CHINESE))


def test_figures_are_the_same_bytes_every_time(tmp_path):
    ((_, figure),) = report.charts([sample_run()]).values()
    for name in ("a.svg", "b.svg"):
        plots.draw(tmp_path / name, figure)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert plots.is_current(tmp_path / "a.svg", figure)
    assert not plots.is_current(tmp_path / "a.svg", figure._replace(title="another"))
    assert not plots.is_current(tmp_path / "missing.svg", figure)


def test_no_word_of_a_figure_is_cut_off_or_covered(tmp_path, monkeypatch):
    """A processor's long name, and two ceilings close together."""
    ((_, figure),) = report.charts([sample_run()]).values()
    panel = figure.panels[0]._replace(ceilings={"float32": 200.0, "bfloat16": 190.0})
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: drawn.append(figure))
    plots.draw(tmp_path / "a.svg", plots.Figure("rdn-b on " + "A(R) Processor, 2 threads, " * 3, [panel]))
    drawn[0].canvas.draw()
    page = drawn[0].bbox
    title = drawn[0]._suptitle.get_window_extent()
    assert page.x0 <= title.x0 < title.x1 <= page.x1
    labels = [text.get_window_extent() for text in drawn[0].axes[0].texts if text.get_text().startswith("ceiling")]
    assert len(labels) == 2
    assert not labels[0].overlaps(labels[1])


def test_report_check_fails_until_the_report_is_made(tmp_path, monkeypatch, capsys):
    bench = tmp_path / "bench"
    for name, path in {"HERE": bench, "RESULTS": bench / "results", "FIGURES": bench / "figures"}.items():
        monkeypatch.setattr(report, name, path)
    monkeypatch.setattr(report.trained, "FOLDER", tmp_path / "bench" / "trained")
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/benchmarks.md"):
        (tmp_path / name).write_text(MARKED, encoding="utf-8")
    (tmp_path / "README.zh-CN.md").write_text("<!-- bench:summary --><!-- /bench -->", encoding="utf-8")
    report.RESULTS.mkdir(parents=True)
    monkeypatch.setenv("OUT", str(report.RESULTS))
    file = results.Results("bench-test", CPU)
    for row in sample_run():
        file.add(**{name: value for name, value in dataclasses.asdict(row).items() if name not in file._run})
    assert report.main(["--check"]) == 1
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0
    (svg,) = report.FIGURES.glob("*.svg")
    assert f"](bench/figures/{svg.name})" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"](../bench/figures/{svg.name})" in (tmp_path / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert "训练步" in (tmp_path / "README.zh-CN.md").read_text(encoding="utf-8")
    file.add(
        case="training step",
        recipe="stock",
        dtype="float32",
        precision="",
        batch=8,
        shape=f"{RDN_B_SHAPE}, 32x32",
        gflops=1.0,
        images_s=1.0,
        vs_reference=1.1,
        seconds=1.0,
        seconds_min=1.0,
        seconds_max=1.0,
    )
    capsys.readouterr()
    assert report.main(["--check"]) == 1
    assert {line.split(";")[0] for line in capsys.readouterr().out.splitlines()} == {
        "stale: README.md",
        "stale: README.zh-CN.md",
        "stale: docs/benchmarks.md",
        f"stale: bench/figures/{svg.name}",
    }

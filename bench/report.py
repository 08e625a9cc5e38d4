"""Render the tables of README and docs/ and the figures from bench/results/*.csv and bench/trained/*.jsonl.

`python -m bench.report` writes them; `--check` fails if they are stale. Tables go between `<!-- bench:NAME -->` and
`<!-- /bench -->` of any page. README.zh-CN.md has the blocks summary and quality only. Only measured rows are drawn.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path

from bench import cases, plots, quality, trained
from bench.case import CPUS, RDN_B_SHAPE, Chart
from bench.plots import Bar, Figure, Panel
from bench.results import HERE, Row, newest, read_all, slug
from bench.tables import markdown, three_digits, unsteady, when
from bench.trained import Run

RESULTS, FIGURES = HERE / "results", HERE / "figures"
NOT_MEASURED = "not measured"

# README's speeds, a row each: (what, case, beginning and end of the shape, batch), of CPUs in their default precision.
SUMMARY = (
    ("training, end to end", "end to end", RDN_B_SHAPE, "32x32", 2),
    ("training step", "training step", RDN_B_SHAPE, "32x32", 8),
    ("memory of a training step", "memory", RDN_B_SHAPE, "32x32", 16),
    ("inference, 128x128", "inference", RDN_B_SHAPE, "128x128", 1),
    ("patches cut and augmented", "loading", "", "32x32", 64),
    ("photograph of 12 megapixels", "photograph", "", "3000x4000", 1),
)

CHINESE = {
    "what": "项目", "batch": "批大小", "reference": "参考实现", "strongest other": "其他方案中最强者",
    "precision": "计算精度", "processor": "处理器", "when": "时间", NOT_MEASURED: "未测",
    "training, end to end": "训练，端到端", "training step": "训练步", "memory of a training step": "训练步内存",
    "inference, 128x128": "推理，128x128", "patches cut and augmented": "裁取并增强图像块",
    "photograph of 12 megapixels": "1200 万像素照片",
    "model": "模型", "set": "数据集", "bicubic": "双三次", "self-ensemble": "自集成", "the paper's RDN": "论文的 RDN",
}  # fmt: skip


def gates_table(runs: list[list[Row]]) -> str:
    """Return every gate with the newest measurement of each device that has one."""
    lines = []
    for gate in (gate for case in cases.load().values() for gate in case.gates):
        verdicts = [gate.judge(rows, rows[0].place, max(row.ranks for row in rows)) for rows in runs]
        found = {verdict.row.device: verdict for verdict in verdicts if verdict.row is not None}
        bound = f"{'at most ' if gate.at_most else ''}{gate.gate:.4g}"
        cells = [gate.what, bound, "" if gate.goal is None else f"{gate.goal:.4g}"]
        for device, verdict in found.items():
            word = verdict.why if verdict.word == "not this device" else verdict.word
            said = "" if word in ("held", "goal") else f" ({word})"
            lines.append([*cells, f"**{three_digits(verdict.value)}**{said}", device, when(verdict.row)])
        if not found:
            lines.append([*cells, NOT_MEASURED, "", ""])
    return markdown(["claim", "gate", "goal", "measured", "on", "when"], lines)


def block_tables(block: str, runs: list[list[Row]]) -> str:
    """Return, for every device, the rows of all cases of a block, in groups that were timed in turn in one run."""
    mine = [case for case in cases.load().values() if case.block == block]
    case_of = {name: case for case in mine for name in case.rows}
    headings = list(dict.fromkeys(column.heading for case in mine for column in case.columns))
    found: dict[tuple, tuple[Row, list[list[str]]]] = {}
    for group in newest(runs):
        case = case_of.get(group[0].case)
        for row in sorted(group, key=lambda row: row.recipe != "reference") if case else ():
            if row.kind == "measured" and case.shows(row):
                cells = {column.heading: column.cell(row) for column in case.columns}
                _, lines = found.setdefault((row.device, row.torch), (row, []))
                lines.append([row.case, *(cells.get(heading, "") for heading in headings), when(row)])
    tables = [f"{_conditions(row)}\n\n{markdown(['case', *headings, 'when'], lines)}" for row, lines in found.values()]
    return "\n\n".join(tables) or NOT_MEASURED


def _conditions(row: Row) -> str:
    return f"**{row.device}**, torch {row.torch}, rdn_fast {row.rdn_fast}:"


def summary_table(runs: list[list[Row]], words: dict[str, str]) -> str:
    """Return README's speeds: the newest measurement of every line of SUMMARY.

    Beside it stand the reference and the strongest other recipe of the same run.
    """
    lines = []
    for what, case, begin, end, batch in SUMMARY:
        found = None
        for group in newest(runs):
            first = group[0]
            same = (first.case, first.batch) == (case, batch) and first.place in CPUS
            if same and first.shape.startswith(begin) and first.shape.endswith(end):
                rows = [row for row in group if row.kind == "measured"]
                ours = _default(rows)
                if ours is not None and (found is None or ours.date >= found[0].date):
                    found = ours, rows
        lines.append([what, str(batch), *(_summary(*found) if found else [NOT_MEASURED])])
    headings = ["what", "batch", "rdn_fast", "reference", "strongest other", "precision", "processor", "when"]
    return markdown(headings, lines, words)


def _default(rows: list[Row]) -> Row | None:
    """Return rdn_fast's row, of several the one in the device's default precision."""
    ours = [row for row in rows if row.recipe == "rdn_fast"]
    return next((row for row in ours if row.precision == "default"), ours[0] if ours else None)


def _summary(ours: Row, rows: list[Row]) -> list[str]:
    """Return a line of README's speeds. The strongest other may compute in any precision."""
    reference = next((row for row in rows if row.recipe == "reference"), None)
    others = [row for row in rows if not row.recipe.startswith(("rdn_fast", "reference", "impl ", "naive"))]
    best = max(others, key=lambda row: row.images_s or -row.peak_mb, default=None)
    amount = f"**{_amount(ours)}**{unsteady(ours)}"
    return [amount, _against(ours, reference), _against(ours, best), ours.dtype, ours.device, when(ours)]


def _amount(row: Row) -> str:
    if row.peak_mb is not None:
        return f"{row.peak_mb:,.0f} MB" + ("" if row.seconds is None else f", {row.seconds:.0f} s")
    return f"{row.images_s:,.0f} /s" if row.images_s > 1000 else f"{three_digits(row.images_s)} /s"


def _against(ours: Row, other: Row | None) -> str:
    """Return what another recipe reached, and how many times as fast ours is, or ours' share of its memory."""
    if other is None:
        return ""
    ratio = f"{ours.images_s / other.images_s:.2f}x" if other.images_s else f"{ours.peak_mb / other.peak_mb:.0%}"
    name = (
        ""
        if other.recipe == "reference"
        else f"{other.recipe}{'' if other.dtype == ours.dtype else ' ' + other.dtype}: "
    )
    return f"{name}{_amount(other)} ({ratio})"


def charts(runs: list[list[Row]]) -> dict[str, tuple[Chart, Figure]]:
    """Return {file name: (chart, figure)}: for every chart of a case and every device, a panel for each group."""
    chart_of = {name: case.chart for case in cases.load().values() if case.chart for name in case.rows}
    found: dict[str, tuple[Chart, Figure]] = {}
    for group in newest(runs):
        chart = chart_of.get(group[0].case)
        rows = [row for row in group if row.kind == "measured" and chart.shows(row)] if chart else []
        if rows:
            device = rows[0].device
            new = chart, Figure(f"{chart.title} on {device}", [])
            _, figure = found.setdefault(f"{chart.figure}_{slug(device)}.svg", new)
            figure.panels.append(_panel(rows, chart))
    return found


def _panel(rows: list[Row], chart: Chart) -> Panel:
    first, dtypes, bars = rows[0], list(dict.fromkeys(row.dtype for row in rows)), []
    for row in rows:
        label, value = f"{row.recipe} {row.dtype}" if len(dtypes) > 1 else row.recipe, getattr(row, chart.value)
        label += unsteady(row)
        slowest, fastest = value * row.seconds / row.seconds_max, value * row.seconds / row.seconds_min
        bars.append(Bar(label, row.recipe, value, slowest, fastest))
    title = f"{first.case}, {', '.join(dtypes)}, batch {first.batch}, {first.shape.rsplit(', ', 1)[1]}"
    known = [row for row in rows if chart.ceilings and row.ceiling_share]
    ceilings = {row.dtype: round(getattr(row, chart.value) / row.ceiling_share, 1) for row in known}
    return Panel(title, bars, chart.unit, ceilings)


def render(text: str, runs: list[list[Row]], models: dict[str, Run], folder: str, chinese: bool = False) -> str:
    """Return a page with every block between markers made anew; `folder`: of the figures, as the page links them.

    ValueError for a marker of a block that does not exist.
    """
    words = CHINESE if chinese else {}
    blocks = {"summary": [summary_table(runs, words)], "quality": [quality.quality_table(models, words)]}
    if not chinese:
        blocks |= {"gates": [gates_table(runs)], "figures": [], "compared": [quality.scale_tables(models)]}
        blocks["trained"] = [quality.training_table(models, runs), quality.files_table(models)]
        blocks |= {case.block: [block_tables(case.block, runs)] for case in cases.load().values() if case.block}
        drawn = [(chart.block, name, figure) for name, (chart, figure) in charts(runs).items()]
        for block, name, figure in [*drawn, *(("trained", *item) for item in quality.charts(models).items())]:
            blocks.setdefault(block, []).append(f"![{figure.title}]({folder}/{name})")

    def block(match: re.Match) -> str:
        if match[1] not in blocks:
            raise ValueError(f"<!-- bench:{match[1]} -->: there are {', '.join(blocks)}")
        content = "\n\n".join(blocks[match[1]]) or NOT_MEASURED
        return f"<!-- bench:{match[1]} -->\n\n{content}\n\n<!-- /bench -->"

    return re.sub(r"<!-- bench:(\w+) -->.*?<!-- /bench -->", block, text, flags=re.DOTALL)


def pages() -> list[Path]:
    """Return the Markdown files that may hold blocks."""
    root = HERE.parent
    return [*sorted(root.glob("README*.md")), *sorted((root / "docs").glob("*.md"))]


def main(argv: list[str] | None = None) -> int:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__, formatter_class=kind)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is stale")
    check = parser.parse_args(argv).check
    try:
        runs, models = read_all(RESULTS), trained.read(trained.FOLDER)
    except ValueError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    stale = {}  # {path: how to mend it}
    for path in pages():
        text = path.read_text(encoding="utf-8")
        folder = Path(os.path.relpath(FIGURES, path.parent)).as_posix()
        fresh = render(text, runs, models, folder, chinese=path.name == "README.zh-CN.md")
        if fresh != text:
            stale[path] = partial(path.write_text, fresh, encoding="utf-8")
    wanted = {name: figure for name, (_, figure) in charts(runs).items()} | quality.charts(models)
    for name, figure in wanted.items():
        if not plots.is_current(FIGURES / name, figure):
            stale[FIGURES / name] = partial(plots.draw, FIGURES / name, figure)
    stale |= {path: path.unlink for path in FIGURES.glob("*.svg") if path.name not in wanted}
    for path, mend in stale.items():
        name = path.relative_to(HERE.parent)
        print(f"stale: {name}; make report renders it" if check else f"rendered: {name}")
        if not check:
            mend()
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

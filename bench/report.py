"""Render the tables of README and docs/ and the figures from bench/results/*.csv and bench/trained/*.jsonl.

`python -m bench.report` writes them; `--check` fails when they are stale. Tables go between `<!-- bench:NAME -->` and `<!-- /bench -->`
of any page, in Chinese in README.zh-CN.md and in English elsewhere. Only measured rows become figures.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from bench import cases, figures, trained
from bench.figures import Bar, Curve, Figure, Panel
from bench.gates import CPUS, GATES, MODEL, Gate, Verdict, judge
from bench.results import HERE, Row, read
from bench.trained import Run

RESULTS, FIGURES = HERE / "results", HERE / "figures"

# README's speeds, a row each: (what, case, beginning and end of the shape, batch). All are of CPUs in their default precision.
SUMMARY = (
    ("training, end to end", "end to end", MODEL, "32x32", 2),
    ("training step", "training step", MODEL, "32x32", 8),
    ("memory of a training step", "memory", MODEL, "32x32", 16),
    ("inference, 128x128", "inference", MODEL, "128x128", 1),
    ("patches cut and augmented", "loading", "", "32x32", 64),
    ("photograph of 12 megapixels", "photograph", "", "3000x4000", 1),
)

CHINESE = {
    "claim": "指标",
    "gate": "门槛",
    "goal": "目标",
    "measured": "实测",
    "on": "设备",
    "not measured": "未测",
    "missed": "未达到",
    "at most": "至多",
    "device": "设备",
    "case": "用例",
    "batch": "批大小",
    "recipe": "方案",
    "dtype": "精度",
    "images/s": "图像/秒",
    "patches/s": "图像块/秒",
    "time waited": "等待时间占比",
    "seed window": "种子口径",
    "of the ceiling": "占上限",
    "vs reference": "对参考实现",
    "vs stock": "对最强原生",
    "peak memory": "峰值内存",
    "training step": "训练步",
    "inference": "推理",
    "end to end": "端到端",
    "memory": "内存",
    "loading": "数据加载",
    "paced loading": "定速加载",
    "photograph": "照片",
    "small files": "1,000 个小文件",
    "LR pixels": "LR 像素",
    "seconds": "秒",
    "model without work": "模型空闲占比",
    "what": "项目",
    "processor": "处理器",
    "reference": "参考实现",
    "strongest other": "其他方案中最强者",
    "training, end to end": "训练，端到端",
    "memory of a training step": "训练步内存",
    "inference, 128x128": "推理，128x128",
    "patches cut and augmented": "裁取并增强图像块",
    "photograph of 12 megapixels": "1200 万像素照片",
    "RDB forward": "RDB 前向",
    "RDB training": "RDB 训练",
    "set": "数据集",
    "bicubic": "双三次",
    "RDN": "RDN",
    "self-ensemble": "自集成",
    "the paper's RDN": "论文的 RDN",
    "model": "模型",
    "shape": "结构",
    "precision": "计算精度",
    "steps": "步数",
    "patches": "图像块数",
    "in the steps": "仅计训练步",
    "of the benchmark": "占基准速度",
    "minutes": "分钟",
    "resumed": "恢复次数",
    "PSNR over training": "训练中的 PSNR",
    "GFLOP/s of the recipes": "各方案的 GFLOP/s",
    "patches/s of the loaders": "各加载器的图像块/秒",
    "CPU, training step, default precision / reference (fp32)": "CPU，训练步，默认精度 / 参考实现（fp32）",
    "CPU, training step, bf16 / strongest stock bf16": "CPU，训练步，bf16 / 最强原生 bf16",
    "CPU, training step, fp32 / strongest stock fp32": "CPU，训练步，fp32 / 最强原生 fp32",
    "CPU, inference, default precision / reference (fp32)": "CPU，推理，默认精度 / 参考实现（fp32）",
    "memory of a training step / naive": "训练步内存 / naive",
    "loader, patches/s / reference's best loader": "数据加载，图像块/秒 / 参考实现最快的加载器",
    "loader at one batch of 64 every 15 ms: share of time waited": "数据加载，每 15 毫秒取一批（64 块）：等待时间占比",
    "opening a training file of 4,000 pairs, seconds": "打开含 4,000 对图像的训练文件，秒",
    "photograph of 12 megapixels, peak memory, MB": "1200 万像素照片，峰值内存，MB",
    "1,000 small files: share of time without work for the model": "1,000 个小文件：模型空闲时间占比",
    "H100, end to end, fp16 O1 / reference under AMP": "H100，端到端，fp16 O1 / AMP 下的参考实现",
    "H100, end to end, fp16 O1, images/s": "H100，端到端，fp16 O1，图像/秒",
    "H100, training step, fp16 O1 / strongest stock": "H100，训练步，fp16 O1 / 最强原生",
    "one Ascend card, images/s in the seed window": "单张昇腾卡，种子口径，图像/秒",
    "eight Ascend cards, images/s in the seed window": "八张昇腾卡，种子口径，图像/秒",
    "eight Ascend cards, scaling efficiency": "八张昇腾卡，扩展效率",
}

_CHARTS = {
    "training step": "model",
    "inference": "model",
    "RDB forward": "rdb",
    "RDB training": "rdb",
    "loading": "loading",
}  # {case: figure}


def translate(words: str, language: str) -> str:
    return words if language == "en" else CHINESE[words]


def load(folder: Path) -> list[list[Row]]:
    """The rows of every run, oldest run first."""
    runs = [rows for path in sorted(folder.glob("*.csv")) if (rows := read(path))]
    return sorted(runs, key=lambda rows: rows[0].date)


def newest(runs: list[list[Row]]) -> list[list[Row]]:
    """Groups of rows that were timed against each other: of every (device, torch, case, shape, batch or several ranks) those of its newest run."""
    groups: dict[tuple, list[Row]] = {}
    for rows in runs:
        mine: dict[tuple, list[Row]] = {}
        several = max(row.ranks for row in rows) > 1
        for row in rows:
            mine.setdefault((row.device, row.torch, row.case, row.shape, "ranks" if several else row.batch), []).append(
                row
            )
        groups |= mine
    return list(groups.values())


def gates_table(runs: list[list[Row]], language: str) -> str:
    """Every gate with the newest measurement of each device that has one."""
    lines = _head(("claim", "gate", "goal", "measured", "on"), language)
    for gate in GATES:
        found = {
            verdict.row.device: verdict for rows in runs for verdict in _verdicts(gate, rows) if verdict.row is not None
        }
        target = [translate("at most", language) + " " if gate.at_most else "", f"{gate.gate:.4g}"]
        cells = [translate(gate.what, language), "".join(target), "" if gate.goal is None else f"{gate.goal:.4g}"]
        if not found:
            lines.append(_line([*cells, translate("not measured", language), ""]))
        for device, verdict in found.items():
            missed = f" ({translate('missed', language)})" if verdict.word == "missed" else ""
            lines.append(_line([*cells, f"**{_three(verdict.value)}**{missed}", device]))
    return "\n".join(lines)


def _verdicts(gate: Gate, rows: list[Row]) -> list[Verdict]:
    ranks = max(row.ranks for row in rows)
    return [verdict for verdict in judge(rows, gate.commands[0], rows[0].place, ranks) if verdict.gate == gate]


def speeds_tables(runs: list[list[Row]], language: str) -> str:
    """For every device the recipes' speeds on rdn-b, in groups that were timed in turn in one run."""
    columns = (
        "case",
        "batch",
        "recipe",
        "dtype",
        "images/s",
        "GFLOP/s",
        "of the ceiling",
        "vs reference",
        "vs stock",
        "peak memory",
    )
    tables: dict[tuple, list[str]] = {}
    for group in newest(runs):
        if group[0].case not in ("training step", "inference", "end to end", "memory") or not group[0].shape.startswith(
            MODEL
        ):
            continue
        for row in group:
            if row.kind != "measured" or row.recipe.startswith("row "):
                continue
            images = _three(row.images_s)
            if row.seed_images_s is not None:
                images += f" ({translate('seed window', language)} {_three(row.seed_images_s)})"
            memory = "" if row.peak_mb is None else f"{row.peak_mb / 1e3:.2f} GB, {row.vs_naive:.0%}"
            bold = "**" if row.recipe == "rdn_fast" else ""
            cells = [
                translate(row.case, language),
                str(row.batch),
                f"{bold}{row.recipe}{bold}",
                row.dtype,
                images,
                _number(row.gflops, "{:.0f}"),
                _number(row.ceiling_share, "{:.0%}"),
                _number(row.vs_reference, "{:.2f}x"),
                _number(row.vs_stock, "{:.2f}x"),
                memory,
            ]
            tables.setdefault((row.device, row.torch), [_run(row), "", *_head(columns, language)]).append(_line(cells))
    return _together(tables, language)


def summary_table(runs: list[list[Row]], language: str) -> str:
    """README's speeds: of every line of SUMMARY the newest measurement, beside the reference and the strongest other recipe of the same run."""
    lines = _head(("what", "batch", "rdn_fast", "reference", "strongest other", "precision", "processor"), language)
    for what, case, begin, end, batch in SUMMARY:
        groups = [
            {row.recipe: row for row in group if row.kind == "measured"}
            for group in newest(runs)
            for first in [group[0]]
            if (first.case, first.batch) == (case, batch)
            and first.place in CPUS
            and first.shape.startswith(begin)
            and first.shape.endswith(end)
        ]
        group = max(
            (group for group in groups if "rdn_fast" in group), key=lambda group: group["rdn_fast"].date, default=None
        )
        if group is None:
            lines.append(_line([translate(what, language), str(batch), translate("not measured", language), *[""] * 4]))
            continue
        ours, reference = group["rdn_fast"], group.get("naive" if case == "memory" else "reference")
        others = [
            row
            for name, row in group.items()
            if row is not reference and not name.startswith(("rdn_fast", "reference", "row ")) and row.vs_reference
        ]
        best = max(others, key=lambda row: row.vs_reference, default=None)
        cells = [f"**{_amount(ours)}**", *(_against(ours, row) for row in (reference, best)), ours.dtype, ours.device]
        lines.append(_line([translate(what, language), str(batch), *cells]))
    return "\n".join(lines)


def _amount(row: Row) -> str:
    if row.peak_mb is not None:
        return f"{row.peak_mb:,.0f} MB" + ("" if row.seconds is None else f", {row.seconds:.0f} s")
    return f"{row.images_s:,.0f} /s" if row.images_s > 1000 else f"{_three(row.images_s)} /s"


def _against(ours: Row, other: Row | None) -> str:
    """What another recipe reached, and how many times as fast ours is, or which share of its memory ours takes."""
    if other is None:
        return ""
    ratio = f"{ours.vs_naive:.0%}" if ours.vs_naive is not None else f"{ours.vs_reference / other.vs_reference:.2f}x"
    return f"{'' if other.recipe == 'reference' else other.recipe + ': '}{_amount(other)} ({ratio})"


def loading_tables(runs: list[list[Row]], language: str) -> str:
    """For every device how fast patches arrive from rdn_fast and from the reference's best loader, and how long a steady consumer waits for them."""
    columns = ("case", "recipe", "patches/s", "vs reference", "time waited")
    tables: dict[tuple, list[str]] = {}
    for group in newest(runs):
        for row in sorted(group, key=lambda row: row.recipe != "reference"):
            if (
                row.case not in ("loading", "paced loading")
                or row.kind != "measured"
                or row.recipe.startswith("reference ")
            ):
                continue
            recipe = f"{row.recipe} ({row.note})" if row.recipe == "reference" else f"**{row.recipe}**"
            cells = [
                translate(row.case, language),
                recipe,
                _number(row.images_s, "{:,.0f}"),
                _number(row.vs_reference, "{:.2f}x"),
                _number(row.waited, "{:.2%}"),
            ]
            tables.setdefault((row.device, row.torch), [_run(row), "", *_head(columns, language)]).append(_line(cells))
    return _together(tables, language)


def upscaling_tables(runs: list[list[Row]], language: str) -> str:
    """For every device what `rdn-fast upscale` takes for a photograph and for many small files."""
    columns = ("case", "LR pixels", "seconds", "images/s", "GFLOP/s", "peak memory", "model without work")
    tables: dict[tuple, list[str]] = {}
    for group in newest(runs):
        for row in group:
            if row.case not in ("photograph", "small files") or row.kind != "measured":
                continue
            cells = [
                translate(row.case, language),
                row.shape.rsplit(", ", 1)[1],
                _number(row.seconds, "{:.1f}"),
                _three(row.images_s),
                _number(row.gflops, "{:.0f}"),
                _number(row.peak_mb, "{:,.0f} MB"),
                _number(row.waited, "{:.1%}"),
            ]
            tables.setdefault((row.device, row.torch), [_run(row), "", *_head(columns, language)]).append(_line(cells))
    return _together(tables, language)


def trained_tables(models: dict[str, Run], runs: list[list[Row]], language: str) -> str:
    """How each model of trained.NAMES was trained, and its means over the usual sets beside bicubic's and the paper's."""
    how = (
        "model",
        "shape",
        "device",
        "precision",
        "steps",
        "batch",
        "patches",
        "patches/s",
        "in the steps",
        "of the benchmark",
        "minutes",
        "resumed",
    )
    runs_table = _head(how, language)
    means_table = _head(("model", "set", "bicubic", "RDN", "self-ensemble", "the paper's RDN"), language)
    for name in trained.NAMES:
        if name not in models:
            runs_table.append(_line([name, translate("not measured", language), *[""] * (len(how) - 2)]))
            continue
        run = models[name]
        start, last, speed, ensemble = run.start, run.of("epoch")[-1], run.benchmark(runs), run.means(True)
        runs_table.append(
            _line(
                [
                    name,
                    cases.words(run.config),
                    start["device"],
                    f"{start['precision']}, torch {start['torch']}",
                    f"{last['step']:,}",
                    str(start["global_batch"]),
                    f"{run.patches(last):,}",
                    _three(run.images_s),
                    _three(run.in_steps),
                    f"{run.images_s / speed:.1%}" if run.images_s and speed else translate("not measured", language),
                    _number(last["seconds"] / 60 if "seconds" in last else None, "{:.1f}"),
                    str(sum(record["step"] < last["step"] for record in run.of("resume"))),
                ]
            )
        )
        for each, mean in run.means(False).items():
            paper = "{:.2f}, {:.4f}".format(*trained.PAPER[each]) if each in trained.PAPER else ""
            cells = [
                _quality(mean, "bicubic_"),
                f"**{_quality(mean)}**",
                _quality(ensemble[each]) if each in ensemble else "",
                paper,
            ]
            means_table.append(_line([name, each, *cells]))
    return "\n".join([*runs_table, "", *means_table])


def quality_table(models: dict[str, Run], language: str) -> str:
    """README's quality: canonical PSNR-Y in dB of the models that have been trained, beside bicubic's and the paper's."""
    lines = _head(("model", "set", "bicubic", "RDN", "self-ensemble", "the paper's RDN"), language)
    for name, run in models.items():
        ensemble = run.means(True)
        for each, mean in run.means(False).items():
            better = _number(ensemble.get(each, {}).get("psnr_y"), "{:.2f}")
            paper = f"{trained.PAPER[each][0]:.2f}" if each in trained.PAPER else ""
            lines.append(
                _line([name, each, f"{mean['bicubic_psnr_y']:.2f}", f"**{mean['psnr_y']:.2f}**", better, paper])
            )
    return "\n".join(lines)


def _quality(mean: dict, prefix: str = "") -> str:
    psnr, compatible, ssim = (mean[f"{prefix}{key}"] for key in ("psnr_y", "psnr_y_compat", "ssim_y"))
    return f"{psnr:.2f} ({compatible:.2f}), {ssim:.4f}"


def _run(row: Row) -> str:
    """What was run to get the row, as a table's first words."""
    return f"**{row.device}**, torch {row.torch}, rdn_fast {row.rdn_fast}, {row.date[:10]}, `{row.command}`:"


def _together(tables: dict[tuple, list[str]], language: str) -> str:
    return "\n\n".join("\n".join(lines) for lines in tables.values()) or translate("not measured", language)


def charts(runs: list[list[Row]]) -> dict[str, Figure]:
    """{file name: figure}: for every device one of the whole model, one of the RDB, one of the loaders."""
    groups = [
        [
            row for row in group if row.kind == "measured" and (row.case, row.recipe) != ("loading", "reference")
        ]  # that is the best of the others
        for group in newest(runs)
    ]
    ceilings = {(row.device, row.dtype): row.gflops for group in groups for row in group if row.case == "ceiling"}
    found: dict[tuple[str, str], list[Panel]] = {}
    for group in groups:
        first = next((row for row in group if row.case in _CHARTS), None)
        if first is None:
            continue
        kind = _CHARTS[first.case]
        if kind == "loading":
            speed, unit, roof = "images_s", "patches/s on the device", {}
        elif not first.shape.startswith(MODEL) or (kind == "rdb" and not first.shape.endswith(", 32x32")):
            continue
        else:
            speed, unit = "gflops", "GFLOP/s, counted as direct convolutions"
            roof = {row.dtype: ceilings[row.device, row.dtype] for row in group if (row.device, row.dtype) in ceilings}
        several = len({row.dtype for row in group}) > 1
        bars = [
            Bar(
                f"{row.recipe} {row.dtype}" if several else row.recipe,
                row.recipe,
                value,
                value * row.seconds / row.seconds_max,
                value * row.seconds / row.seconds_min,
            )
            for row in group
            for value in [getattr(row, speed)]
        ]
        dtypes = ", ".join(dict.fromkeys(row.dtype for row in group))
        title = f"{first.case}, {dtypes}, batch {first.batch}, {first.shape.rsplit(', ', 1)[1]}"
        found.setdefault((first.device, kind), []).append(Panel(title, bars, unit, roof))
    words = {"model": "rdn-b", "rdb": "one residual dense block of rdn-b", "loading": "loaders"}
    return {
        f"{kind}_{_slug(device)}.svg": Figure(f"{words[kind]} on {device}", panels)
        for (device, kind), panels in found.items()
    }


def training_charts(models: dict[str, Run]) -> dict[str, Figure]:
    """{file name: figure}: for every model its validation over patches, and over minutes where the run has told them."""
    found = {}
    for name, run in models.items():
        told = [epoch for epoch in run.of("epoch") if "psnr_y" in epoch]
        measures = {
            "canonical": [epoch["psnr_y"] for epoch in told],
            "reference-compatible": [epoch["psnr_y_compat"] for epoch in told],
        }
        axes = {"thousands of patches": [run.patches(epoch) / 1e3 for epoch in told]}
        if all("seconds" in epoch for epoch in told):
            axes["minutes"] = [epoch["seconds"] / 60 for epoch in told]
        panels = [
            Curve({label: (x, y) for label, y in measures.items()}, axis, "PSNR-Y of the validation set, dB")
            for axis, x in axes.items()
        ]
        found[f"training_{name}.svg"] = Figure(f"{name} on {run.start['device']}", panels)
    return found


def render(text: str, runs: list[list[Row]], language: str, folder: str, models: dict[str, Run]) -> str:
    """A page with every block between markers made anew. ValueError for a marker that nothing is known of."""
    links: dict[str, list[str]] = {"GFLOP/s of the recipes": [], "patches/s of the loaders": []}
    for name in charts(runs):
        words = "patches/s of the loaders" if name.startswith("loading_") else "GFLOP/s of the recipes"
        links[words].append(f"![{translate(words, language)}]({folder}/{name})")
    blocks = {
        "summary": summary_table(runs, language),
        "quality": quality_table(models, language),
        "gates": gates_table(runs, language),
        "speeds": speeds_tables(runs, language),
        "figures": "\n\n".join(links["GFLOP/s of the recipes"]) or translate("not measured", language),
        "loading": "\n\n".join([loading_tables(runs, language), *links["patches/s of the loaders"]]),
        "upscaling": upscaling_tables(runs, language),
        "trained": "\n\n".join(
            [
                trained_tables(models, runs, language),
                *(
                    f"![{translate('PSNR over training', language)}]({folder}/{name})"
                    for name in training_charts(models)
                ),
            ]
        ),
    }

    def block(match: re.Match) -> str:
        if match[1] not in blocks:
            raise ValueError(f"<!-- bench:{match[1]} -->: there are {', '.join(blocks)}")
        return f"<!-- bench:{match[1]} -->\n\n{blocks[match[1]]}\n\n<!-- /bench -->"

    return re.sub(r"<!-- bench:(\w+) -->.*?<!-- /bench -->", block, text, flags=re.DOTALL)


def _head(columns: tuple[str, ...], language: str) -> list[str]:
    return [
        _line([column if column in ("GFLOP/s", "rdn_fast") else translate(column, language) for column in columns]),
        _line(["---"] * len(columns)),
    ]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _three(value: float | None) -> str:
    """Three digits, and all before the point: never 4.34e+03."""
    return _number(value, "{:.3g}" if value is None or value < 999.5 else "{:.0f}")


def _slug(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-")


def pages() -> list[Path]:
    """The Markdown files that may hold blocks."""
    root = HERE.parent
    return [
        *(path for path in (root / "README.md", root / "README.zh-CN.md") if path.is_file()),
        *sorted((root / "docs").glob("*.md")),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is stale")
    check = parser.parse_args(argv).check
    try:
        runs, models = load(RESULTS), trained.read(trained.FOLDER)
    except ValueError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    wanted = charts(runs) | training_charts(models)
    stale = []
    for path in pages():
        text = path.read_text(encoding="utf-8")
        language = "zh" if path.name == "README.zh-CN.md" else "en"
        fresh = render(text, runs, language, Path(os.path.relpath(FIGURES, path.parent)).as_posix(), models)
        if fresh != text:
            stale.append(path)
            if not check:
                path.write_text(fresh, encoding="utf-8")
    for name, figure in wanted.items():
        if not figures.is_current(FIGURES / name, figure):
            stale.append(FIGURES / name)
            if not check:
                figures.draw(FIGURES / name, figure)
    for path in FIGURES.glob("*.svg"):
        if path.name not in wanted:
            stale.append(path)
            if not check:
                path.unlink()
    for path in stale:
        print(
            f"{'stale' if check else 'rendered'}: {path.relative_to(HERE.parent)}"
            + ("; make report renders it" if check else "")
        )
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

"""What is rendered of bench/trained: how the models were trained, their curves, and their quality beside others'."""

from __future__ import annotations

from bench.models import words
from bench.plots import Curve, Figure
from bench.published import EDSR_BASELINE, PAPER, PUBLISHED, Published
from bench.results import Row
from bench.tables import markdown, number, three_digits
from bench.trained import NAMES, OTHERS, Run

SETS = ("Set5", "Set14", "B100")  # of README, and of every table
_NOT_MEASURED = "not measured"


def scale_tables(models: dict[str, Run]) -> str:
    """Return a table of quality for each scale of NAMES."""
    scales = sorted({Run(name, []).scale for name in NAMES})
    return "\n\n".join(f"**x{scale}**\n\n{_quality(models, scale)}" for scale in scales)


def training_table(models: dict[str, Run], runs: list[list[Row]]) -> str:
    """Return how each model of NAMES was trained; `runs`: those of benchmarks."""
    headings = "model", "shape", "begun from", "device", "precision", "date", "steps", "batch", "patches", "minutes"
    speeds = "patches/s", "in the steps", "of the benchmark", "resumed"
    lines = []
    for name in NAMES:
        if name not in models:
            lines.append([name, _NOT_MEASURED])
            continue
        run = models[name]
        start, last, speed = run.start, run.of("epoch")[-1], run.benchmark(runs)
        share = f"{run.images_s / speed:.1%}" if run.images_s and speed else _NOT_MEASURED
        minutes = number(last["seconds"] / 60 if "seconds" in last else None, "{:,.1f}")
        resumed = sum(record["step"] < last["step"] for record in run.of("resume"))
        what = [name, words(run.config), run.begun_from, run.devices, f"{start['precision']}, torch {start['torch']}"]
        batch = f"{start['global_batch']} of {start['patch_size']}x{start['patch_size']}"
        work = [start.get("date", "")[:10], f"{last['step']:,}", batch, f"{run.patches(last):,}"]
        speed = [three_digits(run.images_s), three_digits(run.in_steps), share, str(resumed)]
        lines.append([*what, *work, minutes, *speed])
    return markdown([*headings, *speeds], lines)


def files_table(models: dict[str, Run]) -> str:
    """Return the size and the SHA-256 of every model's file."""
    lines = []
    for name, run in models.items():
        (weights,) = run.of("weights")
        lines.append([name, weights["file"], number(weights.get("bytes"), "{:,}"), f"`{weights['sha256']}`"])
    return markdown(["model", "file", "bytes", "SHA-256"], lines)


def _quality(models: dict[str, Run], scale: int) -> str:
    """Return a scale's table: a row for each model, with and without self-ensemble, and for each published one."""
    measured = [run for run in models.values() if run.scale == scale]
    found = dict.fromkeys(SETS) | {each: None for run in measured for each in run.means(False)}
    lines = []
    if measured:
        bicubic = {each: mean for run in measured for each, mean in run.means(False).items()}
        lines.append(["bicubic", "", "measured", *_cells(bicubic, found, "bicubic_")])
    for name in [*NAMES, *OTHERS]:
        if run := models.get(name):
            lines += _of_model(run, list(found)) if run.scale == scale else []
        elif name in NAMES and Run(name, []).scale == scale:
            lines.append([name, "", _NOT_MEASURED])
    lines += [_of_source(source, scale, list(found)) for source in PUBLISHED]
    return markdown(["model", "parameters", "how", *found], lines)


def _of_model(run: Run, sets: list[str]) -> list[list[str]]:
    own, name = run.name in NAMES, OTHERS.get(run.name, run.name)
    size, lines = f"{run.parameters / 1e6:.2f} M", []
    for title, means in ((name, run.means(False)), (f"{name}, self-ensemble", run.means(True))):
        cells = [f"**{cell}**" if own and cell else cell for cell in _cells(means, sets)]
        lines += [[f"**{title}**" if own else title, size, "measured", *cells]] if means else []
    return lines


def _cells(means: dict[str, dict], sets, prefix: str = "") -> list[str]:
    """Return a cell for each set: canonical PSNR-Y, in brackets the reference-compatible one, SSIM-Y."""
    keys = [f"{prefix}{key}" for key in ("psnr_y", "psnr_y_compat", "ssim_y")]
    values = [[means[each][key] for key in keys] if each in means else None for each in sets]
    return ["{:.2f} ({:.2f}), {:.4f}".format(*value) if value else "" for value in values]


def _of_source(source: Published, scale: int, sets: list[str]) -> list[str]:
    cells = []
    for each in sets:
        psnr, ssim = source.figures[scale].get(each, (None, None))
        shown = number(psnr, "{:.2f}" if source.canonical else "({:.2f})")
        cells.append(shown if ssim is None else f"{shown}, {ssim:.4f}")
    note = f"; {source.notes[scale]}" if scale in source.notes else ""
    return [source.model, f"{source.parameters[scale]:.2f} M", f"published: {source.source}{note}", *cells]


def quality_table(models: dict[str, Run], words: dict[str, str]) -> str:
    """Return README's quality: canonical PSNR-Y in dB of the models that have been trained."""
    lines = []
    for name in [name for name in NAMES if name in models]:
        run = models[name]
        plain, ensemble = run.means(False), run.means(True)
        for each in [each for each in SETS if each in plain]:
            better = number(ensemble.get(each, {}).get("psnr_y"), "{:.2f}")
            published = [f"{source.figures[run.scale][each][0]:.2f}" for source in (EDSR_BASELINE, PAPER)]
            mean = plain[each]
            lines.append([name, each, f"{mean['bicubic_psnr_y']:.2f}", f"**{mean['psnr_y']:.2f}**", better, *published])
    headings = ["model", "set", "bicubic", "RDN", "self-ensemble", "EDSR-baseline", "the paper's RDN"]
    return markdown(headings, lines, words)


def charts(models: dict[str, Run]) -> dict[str, Figure]:
    """Return {file name: figure}: each model's validation over steps, and over minutes if it recorded them."""
    found = {}
    for name in [name for name in NAMES if name in models]:
        run = models[name]
        validated = [epoch for epoch in run.of("epoch") if "psnr_y" in epoch]
        if not validated:
            continue
        pictures = run.start.get("eval_file") or "the validation set"
        keys = {"canonical": "psnr_y", "reference-compatible": "psnr_y_compat"}
        begun = f", begun from {run.begun_from}" if run.start.get("weights_file") else ""
        axes = {f"steps{begun}": [epoch["step"] for epoch in validated]}
        if all("seconds" in epoch for epoch in validated):
            axes["minutes"] = [epoch["seconds"] / 60 for epoch in validated]
        what = f"PSNR-Y of {pictures}, dB"
        panels = [
            Curve({label: (x, [epoch[key] for epoch in validated]) for label, key in keys.items()}, axis, what)
            for axis, x in axes.items()
        ]
        found[f"training_{name}.svg"] = Figure(f"{name}, trained on {run.devices}", panels)
    return found

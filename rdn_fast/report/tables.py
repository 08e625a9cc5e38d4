"""The tables of a page: how far runs are, the validation's pictures, settings, starts and resumes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from rdn_fast.report.read import Run
from rdn_fast.report.words import decibels, number, words
from rdn_fast.terminal import clock

_MOST_ROWS = 200  # of starts and resumes
_NOT_SETTINGS = ("event", "step", "recipe", "rdb")
_OF_A_START = (("date", "date"), ("rdn_fast", "rdn-fast"), ("torch", "torch"), ("device", "device"), ("world", "ranks"))


def chip(i: int, runs: list[Run]) -> str:
    """Return the run's name with its colour; "" where there is one run only."""
    return f'<span class="chip r{i % 8}">{words(runs[i].name)}</span>' if len(runs) > 1 else ""


def summary(runs: list[Run]) -> str:
    """Return how far each run is, and how good: of several runs as a table."""
    head = ("best PSNR-Y", "at step", "last PSNR-Y", "bicubic", "steps", "time", "speed", "skipped", "model")
    if len(runs) == 1:
        shown = _pairs("tiles", zip(head, _summed(runs[0]), strict=True))
    else:
        rows = [[_name(i, runs), *_summed(run)] for i, run in enumerate(runs)]
        shown = _table("Runs", ("run", *head), rows, "runs")
    notes = "".join(f"<li>{words(run.name)}: {words(note)}</li>" for run in runs for note in run.notes)
    return f"<section>{shown}{f'<ul>{notes}</ul>' if notes else ''}</section>"


def _name(i: int, runs: list[Run]) -> str:
    return chip(i, runs) or words(runs[i].name)


def _summed(run: Run) -> Iterable[str]:
    start = run.settings
    psnr, at = run.epochs["psnr_y"], run.epochs["step"]
    validated = np.flatnonzero(np.isfinite(psnr))
    best = validated[np.argmax(psnr[validated])] if len(validated) else None
    shape = [start.get(key) for key in ("num_blocks", "num_layers", "growth_rate", "num_features")]
    model = "D{} C{} G{} G0 {}".format(*map(str, shape)) if None not in shape else ""
    yield decibels(psnr[best] if best is not None else math.nan)
    yield number(at[best] if best is not None else math.nan)
    yield decibels(psnr[validated[-1]] if len(validated) else math.nan)
    yield decibels(run.bicubic_psnr)
    yield number(run.last_step) + words(f" of {number(start['steps'])}" if isinstance(start.get("steps"), int) else "")
    minutes = run.minutes(np.array([float(run.last_step)]))
    yield clock(60 * float(minutes[0])) if minutes is not None else "–"
    speed = run.epochs["fps_end_to_end"]
    speed = speed[np.isfinite(speed)]
    yield f"{number(float(np.median(speed)))} img/s" if len(speed) else "–"
    yield number(float(np.nansum(run.steps["skipped"])))
    yield words(f"x{start['scale']} {model}" if "scale" in start else model)


def measured(runs: list[Run]) -> str:
    """Return a table of validation pictures that sorts: PSNR-Y of bicubic, and of RDN at the first and last sheet."""
    rows = []
    for i, run in enumerate(runs):
        first = {each.name: each.rdn_psnr for each in run.sheets[0].measured} if run.sheets else {}
        for each in run.sheets[-1].measured if run.sheets else ():
            values = each.bicubic_psnr, first.get(each.name, math.nan), each.rdn_psnr
            cells = [words(each.name), *map(decibels, values), decibels(each.rdn_psnr - each.bicubic_psnr, sign=True)]
            rows.append(([_name(i, runs)] if len(runs) > 1 else []) + cells)
    if not rows:
        return ""
    head = ("picture", "bicubic", "RDN, first crops", "RDN, last crops", "gain")
    head = ("run", *head) if len(runs) > 1 else head
    title = "Pictures of the validation"
    return f"<section><h2>{title}</h2>{_table(title, head, rows, 'sorts')}</section>"


def settings(runs: list[Run]) -> str:
    """Return the settings that each run had last: of several runs as a table where those that differ are marked."""
    of_runs = [{"folder": run.folder, **_flat(run.settings)} for run in runs]
    names = list(dict.fromkeys(name for each in of_runs for name in each))
    title, rows, differ = "Settings and machine", [], []
    if len(runs) == 1:
        pairs = ((words(name), words(value)) for name, value in of_runs[0].items())
        return f"<section><h2>{title}</h2>{_pairs('settings', pairs)}</section>"
    for name in names:
        values = [str(each.get(name, "–")) for each in of_runs]
        rows.append([words(name), *map(words, values)])
        differ.append(len(set(values)) > 1)
    head = "setting", *(_name(i, runs) for i in range(len(runs)))
    return f"<section><h2>{title}</h2>{_table(title, head, rows, 'settings', differ)}</section>"


def _flat(settings: dict) -> dict:
    """Return the settings that are set, with those of the recipe and the implementations among them."""
    flat = {key: value for key, value in settings.items() if key not in _NOT_SETTINGS}
    for key in ("recipe", "rdb"):
        inner = settings.get(key)
        if isinstance(inner, dict):
            flat |= {name if key == "recipe" else f"rdb, {name}": value for name, value in inner.items()}
    return {key: value for key, value in flat.items() if value not in (None, "")}


def starts(runs: list[Run]) -> str:
    """Return a table of starts, resumes and halved loss scales."""
    rows = []
    for i, run in enumerate(runs):
        for record in [*run.starts, *run.scales][:_MOST_ROWS]:
            scale = record.get("loss_scale")
            event = f"loss scale halved to {scale}" if record["event"] == "loss_scale" else record["event"]
            told = [words(record.get(key, "")) for key, _ in _OF_A_START]
            rows.append([_name(i, runs), words(event), number(record["step"]), *told])
    if not rows:
        return ""
    head, title = ("run", "event", "step", *(title for _, title in _OF_A_START)), "Starts and resumes"
    return f"<section><h2>{title}</h2>{_table(title, head, rows, 'starts')}</section>"


def _pairs(kind: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values, both HTML, as a list that takes as many columns as there is room for."""
    return f'<dl class="{kind}">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)}</dl>'


def _table(label: str, head: Iterable[str], rows: list[list[str]], kind: str, marked: list[bool] | None = None) -> str:
    """Return a table of HTML cells. marked: which rows are."""
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = []
    for i, (first, *rest) in enumerate(rows):
        mark = ' class="differs"' if marked and marked[i] else ""
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        body.append(f'<tr{mark}><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="scrolls" tabindex="0" role="region" aria-label="{label}"><table class="{kind}">'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )

"""The pictures of a run: crops of validations, side by side. page.js makes sliders of them."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

from rdn_fast.evaluation.crops import Crop
from rdn_fast.evaluation.sheet import Sheet
from rdn_fast.report.read import Run
from rdn_fast.report.words import decibels, number, words
from rdn_fast.training.snapshot import spread

_MOST_STEPS = 7  # of which the same window is shown


def pictures(run: Run, heading: str) -> str:
    """Return the section of a run's crops. heading: HTML."""
    if not run.sheets:
        why = "a run without validation keeps none" if not np.isfinite(run.epochs["psnr_y"]).any() else "none were kept"
        return f'<section><h2>Pictures {heading}</h2><p class="none">No crops: {why}.</p></section>'
    newest = run.sheets[-1]
    shown = [run.sheets[i] for i in spread(range(len(run.sheets) - 1), _MOST_STEPS - 1)] + [newest]
    tracked = [_figure(crop, _by_step(crop, shown)) for crop in newest.crops["tracked"]]
    parts = [_group("How they improve", "the window where bicubic is worst, of each picture", tracked)]
    where = f"of the {len(newest.measured)} of {newest.pictures} pictures that were looked at"
    for kind, title in (("best", "Best crops"), ("worst", "Worst crops")):
        what = f"{'largest' if kind == 'best' else 'smallest'} gain over bicubic, {where}, at step {newest.step}"
        figures = [_figure(crop, _by_step(crop, [newest], kind)) for crop in newest.crops[kind]]
        parts.append(_group(title, what, figures))
    return _section(f"Pictures {heading}", parts, "bicubic", f"step-{newest.step}")


def side_by_side(runs: list[Run]) -> str:
    """Return the section of the windows that several runs have in common, at the newest crops of each."""
    newest = [(i, run.name, run.sheets[-1]) for i, run in enumerate(runs) if run.sheets]
    if len(newest) < 2:
        return ""
    figures = []
    for crop in newest[0][2].crops["tracked"]:
        same = [(i, name, sheet.step, _same(crop, sheet)) for i, name, sheet in newest]
        shots = [(f"run-{i}", f"{name}, step {number(step)}", each) for i, name, step, each in same if each is not None]
        if len(shots) > 1:
            figures.append(_figure(crop, shots))
    group = _group("Runs side by side", "at the newest crops of each", figures)
    return _section("Pictures", [group], *(f"run-{i}" for i, *_ in newest[:2])) if figures else ""


def _section(heading: str, parts: list[str], left: str, right: str) -> str:
    """Return a section of pictures. left, right: keys of what sliders compare at first."""
    choices = f'data-left="{left}" data-right="{right}"'
    return f'<section class="pictures" {choices}><h2>{heading}</h2><div class="groups">{"".join(parts)}</div></section>'


def _by_step(crop: Crop, sheets: list[Sheet], kind: str = "tracked") -> list[tuple[str, str, Crop]]:
    """Return what _figure() shows: the window of these sheets that have it."""
    same = [(sheet.step, _same(crop, sheet, kind)) for sheet in sheets]
    return [(f"step-{step}", f"RDN, step {number(step)}", each) for step, each in same if each is not None]


def _same(crop: Crop, sheet: Sheet, kind: str = "tracked") -> Crop | None:
    """Return the same window of a sheet; None if it does not have it."""
    place = crop.name, crop.left, crop.top
    same = (each for each in sheet.crops[kind] if (each.name, each.left, each.top) == place)
    return next((each for each in same if np.array_equal(each.hr, crop.hr)), None)


def _group(title: str, what: str, figures: list[str]) -> str:
    if not figures:
        return ""
    shown = f'<div class="compares">{"".join(figures)}</div>'
    return f"<div><h3>{words(title)} <small>{words(what)}</small></h3>{shown}</div>"


def _figure(crop: Crop, outputs: list[tuple[str, str, Crop]]) -> str:
    """Return one window: bicubic, RDN's outputs, HR. outputs: key, label and window of each."""
    name, (height, width) = words(crop.name), crop.hr.shape[:2]
    about = f"{name}, {width} by {height} pixels at x {crop.left}, y {crop.top}"
    shots = [_shot("bicubic", "bicubic", crop.bicubic, decibels(crop.bicubic_psnr), about)]
    shots += [_shot(key, words(label), each.rdn, decibels(each.rdn_psnr), about) for key, label, each in outputs]
    shots.append(_shot("hr", "HR", crop.hr, "", about))
    gains = (each.rdn_psnr - crop.bicubic_psnr for _, _, each in outputs if outputs[-1][0].startswith("step"))
    *_, gain = [math.nan, *gains]
    told = f"{decibels(gain, sign=True)} over bicubic" if math.isfinite(gain) else ""
    return (
        f'<figure class="compare" data-about="{about}"><figcaption><b>{name}</b> <span>{told}</span></figcaption>'
        f'<div class="strip" style="--ratio:{width}/{height}">{"".join(shots)}</div></figure>'
    )


def _shot(key: str, label: str, image: np.ndarray, psnr: str, about: str) -> str:
    height, width = image.shape[:2]
    return (
        f'<div class="shot" data-key="{key}" data-label="{label}" data-psnr="{psnr}">'
        f'<img src="{_data_uri(image)}" width="{width}" height="{height}" alt="{label}: {about}">'
        f"<span>{label.removeprefix('RDN, ')}<br>{psnr}</span></div>"
    )


def _data_uri(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

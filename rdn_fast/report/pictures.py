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
        return f'<section class="pictures"><h2>Pictures {heading}</h2><p class="none">No crops: {why}.</p></section>'
    newest = run.sheets[-1]
    shown = [run.sheets[i] for i in spread(range(len(run.sheets) - 1), _MOST_STEPS - 1)] + [newest]
    tracked = [_figure(crop, [(each.step, _same(each, crop)) for each in shown]) for crop in newest.crops["tracked"]]
    parts = [_group("How they improve", "the window where bicubic is worst, of each picture", tracked)]
    where = f"of the {len(newest.measured)} of {newest.pictures} pictures that were looked at"
    for kind, title in (("best", "Best crops"), ("worst", "Worst crops")):
        what = f"{'largest' if kind == 'best' else 'smallest'} gain over bicubic, {where}, at step {newest.step}"
        parts.append(_group(title, what, [_figure(crop, [(newest.step, crop)]) for crop in newest.crops[kind]]))
    return f'<section class="pictures"><h2>Pictures {heading}</h2>{"".join(parts)}</section>'


def _same(sheet: Sheet, crop: Crop) -> Crop | None:
    """Return the same window of another sheet; None if it does not have it."""
    place = crop.name, crop.left, crop.top, crop.hr.shape
    same = (each for each in sheet.crops["tracked"] if (each.name, each.left, each.top, each.hr.shape) == place)
    return next(same, None)


def _group(title: str, what: str, figures: list[str]) -> str:
    if not figures:
        return ""
    return f'<h3>{words(title)} <small>{words(what)}</small></h3><div class="compares">{"".join(figures)}</div>'


def _figure(crop: Crop, by_step: list[tuple[int, Crop | None]]) -> str:
    """Return one window: bicubic, RDN at these steps, HR. The last of them is `crop` itself."""
    name, (height, width) = words(crop.name), crop.hr.shape[:2]
    about = f"{name}, {width} by {height} pixels at x {crop.left}, y {crop.top}"
    shots = [_shot("bicubic", "bicubic", crop.bicubic, decibels(crop.bicubic_psnr), about)]
    for step, each in by_step:
        if each is not None:
            key = "rdn" if each is crop else f"rdn-{step}"
            shots.append(_shot(key, f"RDN, step {number(step)}", each.rdn, decibels(each.rdn_psnr), about))
    shots.append(_shot("hr", "HR", crop.hr, "", about))
    gain = crop.rdn_psnr - crop.bicubic_psnr
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
        f"<span>{label}<br>{psnr}</span></div>"
    )


def _data_uri(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

"""`rdn-fast metrics SR HR`: pictures of any program scored against HR pictures, in every convention."""

from __future__ import annotations

import csv as csv_format
import io
import json as json_format
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from rdn_fast.data.images import image_files, read_image
from rdn_fast.data.partners import lines_on, match, scales_in
from rdn_fast.errors import UserError
from rdn_fast.evaluation import conventions
from rdn_fast.evaluation.conventions import CHANNELS, Claim, Convention
from rdn_fast.evaluation.outputs import check_no_input_is_lost, files_to_write
from rdn_fast.files import Kind, finite, write_result
from rdn_fast.ordered_map import ordered_map
from rdn_fast.terminal import Bar, print_line, print_table, printable

_KINDS = {
    "--json": Kind("a report of rdn-fast metrics", lambda head: head.startswith(b'{\n "sr": ')),
    "--csv": Kind("a table of rdn-fast metrics", lambda head: head.startswith(b"image,measure,")),
    "--markdown": Kind("a table of rdn-fast metrics", lambda head: b" scored against " in head.partition(b"\n")[0]),
}
_UNKNOWN_SCALE = (0, 2, 3, 4, 8)  # crops to try
_LARGER = 8  # pixels by which an HR picture may exceed the SR picture: the rest of a division by the scale


def score_folders(
    sr: str,
    hr: str,
    scale: int | None = None,
    claim: str | None = None,
    strict: bool = False,
    json: str | None = None,
    csv: str | None = None,
    markdown: str | None = None,
) -> dict:
    """Score the pictures of folder `sr` (or one file) against those of `hr`, print a table, return the report.

    scale: crops are 0, the scale and scale + 6; None: the scale that the names tell, else crops 0, 2, 3, 4 and 8.
    claim: a printed number; lines say which conventions give it. strict: raise UserError for a file without partner or
    of another size, instead of naming it. json, csv, markdown: files for the table.

    Returns {"sr", "hr", "scale", "crops", "notes" (lines on what is left out), "images": [{"name", "sr", "hr",
    "values"}], "mean": values, "claim": None or {"number", "given_by", "nearest": conventions}}. A value is
    {"measure", "channels", "over", "crop", "value"}, as of Convention; PSNR in dB, inf for equal pictures.
    """
    claimed = None if claim is None else Claim.parse(claim)
    files = files_to_write({"--json": json, "--csv": csv, "--markdown": markdown})
    check_no_input_is_lost(files, [sr, hr], _KINDS)
    notes: list[str] = []

    def note(line: str) -> None:
        if strict:
            raise UserError(f"{line}; mend that, or leave out --strict to go on without")
        notes.append(line)
        print_line(line)

    pairs = _pairs(sr, hr, note)
    scale = scale or _scale_of_names([Path(sr), Path(hr), *(file for pair in pairs for file in pair)])
    crops = _UNKNOWN_SCALE if scale is None else (0, scale, scale + 6)
    images, measured = _measure_all(pairs, crops, note)
    if equal := [image["name"] for image in images if any(each["value"] == math.inf for each in image["values"])]:
        notes.append(f"equal to HR, so that an infinite PSNR is left out of the means over images: {', '.join(equal)}")
        print_line(notes[-1])
    found = conventions.values(measured, crops)
    report = {"sr": str(sr), "hr": str(hr), "scale": scale, "crops": list(crops), "notes": notes, "images": images}
    report |= {"mean": _values(found), "claim": None}
    print_line(_title(report))
    print_table(_table(found, crops))
    for line in _explanations(found):
        print_line(line)
    if claimed:
        giving, nearest = ([each._asdict() for each in some] for some in claimed.answer(found))
        report["claim"] = {"number": claimed.text, "given_by": giving, "nearest": nearest}
        for line in claimed.in_lines(found):
            print_line(line)
    for flag, file in files.items():
        content = {"--json": _as_json, "--csv": _as_csv, "--markdown": _as_markdown}[flag](report, found, claimed)
        write_result(file, content.encode(errors="backslashreplace"), f"{flag} {file}", _KINDS[flag])
    return report


def _pairs(sr: str, hr: str, note: Callable[[str], None]) -> list[tuple[Path, Path]]:
    """Return the files that belong together. Raises UserError where there are none."""
    if os.path.isdir(sr) != os.path.isdir(hr):
        raise UserError(f"{sr} {hr}: one is a folder and one is not; give two folders, or two pictures")
    if not os.path.isdir(sr):
        return [(Path(sr), Path(hr))]
    hr_files = image_files(hr)
    if marked := [file for file in hr_files if file.stem.endswith("_HR")]:
        hr_files = marked  # SelfExSR's folders hold LR pictures and results beside them
    pairs, alone = match([file for file in image_files(sr) if file not in hr_files], hr_files)
    for line in lines_on(alone):
        note(line)
    if not pairs:
        raise UserError(f"{sr} {hr}: no names match; name results as the HR pictures, as baby.png or baby_x2_SR.png")
    return pairs


def _scale_of_names(paths: Sequence[Path]) -> int | None:
    """Return the scale that the names tell, as x2, X4 or SRF_3; None where they tell none, or several."""
    told = {scale for path in paths for scale in scales_in(path.name)}
    return told.pop() if len(told) == 1 else None


def _measure_all(
    pairs: list[tuple[Path, Path]], crops: Sequence[int], note: Callable[[str], None]
) -> tuple[list[dict], list[dict]]:
    """Return the report's images, and what was measured of each. Raises UserError where nothing could be."""

    def one(pair: tuple[Path, Path]) -> dict | str:
        read = []
        for file in pair:
            try:
                read.append(read_image(file))
            except ValueError as error:
                return f"skipped {file}: {error}"
        sr, hr = read
        try:
            return conventions.measure(sr, _cut(hr, sr), crops)
        except ValueError as error:
            return f"skipped {pair[0]}: {error}"

    images, measured = [], []
    with Bar("images", len(pairs)) as bar:
        for (sr, hr), result in zip(pairs, ordered_map(one, pairs, workers=2, ahead=3), strict=True):
            bar.advance()
            if isinstance(result, str):
                note(result)
                continue
            measured.append(result)
            of_image = _values(conventions.values([result], crops))
            images.append({"name": printable(hr.stem), "sr": str(sr), "hr": str(hr), "values": of_image})
    if not images:
        raise UserError(f"{pairs[0][0]}: neither it nor any other of {len(pairs)} pictures could be scored")
    return images, measured


def _cut(hr: np.ndarray, sr: np.ndarray) -> np.ndarray:
    """Return hr without the few rows and columns that sr lacks. Raises ValueError where the sizes do not fit."""
    (height, width), (h, w) = hr.shape[:2], sr.shape[:2]
    if not (0 <= height - h < _LARGER and 0 <= width - w < _LARGER):
        raise ValueError(f"{w}x{h} pixels, its HR picture {width}x{height}")
    return hr[:h, :w]


def _values(found: dict[Convention, float]) -> list[dict]:
    return [{**convention._asdict(), "value": value} for convention, value in found.items()]


def _title(report: dict) -> str:
    scale = "" if report["scale"] is None else f", x{report['scale']}"
    return printable(f"{len(report['images'])} images of {report['sr']} scored against {report['hr']}{scale}")


def _table(found: dict[Convention, float], crops: Sequence[int]) -> Table:
    table = Table()
    for heading in ("measure", "channels", "mean over"):
        table.add_column(heading)
    for crop in crops:
        table.add_column(f"crop {crop}", justify="right")
    for measure, over in (("PSNR", "images"), ("PSNR", "pixels"), ("SSIM", "images")):
        for channels in CHANNELS:
            row = [Convention(measure, channels, over, crop) for crop in crops]
            if row[0] in found:
                numbers = (conventions.number(each, found[each]) if each in found else "" for each in row)
                table.add_row(measure, channels, over, *numbers)
    return table


def _explanations(found: dict[Convention, float]) -> list[str]:
    lines = [f"{channels}: {words}." for channels, words in CHANNELS.items()]
    if any(each.over == "pixels" for each in found):
        lines.append("Mean over pixels: PSNR of the squared error of all images together, torchmetrics' default.")
    return [*lines, "Programs that do not round their result before they measure print about 0.01 dB more at 38 dB."]


def _as_json(report: dict, *_) -> str:
    return json_format.dumps(finite(report), indent=1) + "\n"


def _as_csv(report: dict, *_) -> str:
    """Return a line per image and convention, then those of the set, called mean; numbers in full."""
    file = io.StringIO()
    writer = csv_format.DictWriter(file, ["image", *Convention._fields, "value"], lineterminator="\n")
    writer.writeheader()
    for image in (*report["images"], {"name": "mean", "values": report["mean"]}):
        writer.writerows({"image": image["name"], **value} for value in image["values"])
    return file.getvalue()


def _as_markdown(report: dict, found: dict[Convention, float], claimed: Claim | None) -> str:
    table, file = _table(found, report["crops"]), io.StringIO()
    table.box = box.MARKDOWN
    Console(file=file, width=1000, color_system=None).print(table)
    lines = [*_explanations(found), *map(printable, report["notes"]), *(claimed.in_lines(found) if claimed else [])]
    return (
        "\n\n".join([_title(report), file.getvalue().strip(), "\n".join(f"- {line.strip()}" for line in lines)]) + "\n"
    )

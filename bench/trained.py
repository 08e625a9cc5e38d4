"""Models trained in full: a file bench/trained/NAME.jsonl for each run, from which tables and a curve are rendered.

`python -m bench.trained NAME --outputs-dir DIR --weights FILE --eval JSON...` makes it of what `rdn-fast train`,
`convert` and `eval --json` left: the run's metrics less those of single steps, the weights' size and SHA-256, the means
of the evaluations.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.models import words
from bench.plots import Curve, Figure
from bench.results import HERE, Row
from bench.tables import markdown, number, three_digits
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.files import atomic_write
from rdn_fast.weights import convert

FOLDER = HERE / "trained"
NAMES = ("small_x2", "rdn_b_x2")  # the published ones
_KEPT = ("start", "resume", "loss_scale", "epoch")

# The paper's RDN at x2, trained on DIV2K: {set: (PSNR-Y, SSIM-Y)}, arXiv:1802.08797, table 2.
PAPER = {"Set5": (38.24, 0.9614), "Set14": (34.01, 0.9212), "B100": (32.34, 0.9017)}


@dataclass(frozen=True)
class Run:
    """One model's records, in the order of the file."""

    name: str
    records: list[dict]

    def of(self, event: str) -> list[dict]:
        return [record for record in self.records if record["event"] == event]

    @property
    def start(self) -> dict:
        """The settings of the run."""
        return self.of("start")[0]

    @property
    def config(self) -> ModelConfig:
        names = [field.name for field in dataclasses.fields(ModelConfig)]
        return ModelConfig(**{name: self.start[name] for name in names if name in self.start})  # older runs lack some

    def patches(self, epoch: dict) -> int:
        """Return how many patches were trained on until the end of this epoch; its last batch may be a smaller one."""
        batch, size = self.start["global_batch"], self.start["patches_per_epoch"]
        steps = size // batch if self.start["drop_last"] else math.ceil(size / batch)
        whole, rest = divmod(epoch["step"], steps)
        return whole * min(size, steps * batch) + rest * batch

    @property
    def in_steps(self) -> float:
        """Patches per second end to end as every epoch has counted them, without the time between epochs."""
        seconds = before = 0.0
        for epoch in self.of("epoch"):
            patches = self.patches(epoch)
            seconds += (patches - before) / epoch["fps_end_to_end"]
            before = patches
        return before / seconds

    @property
    def images_s(self) -> float | None:
        """Patches per second of wall time, validations and checkpoints included.

        After each start, all before the first epoch's end is left out. None if no two epochs follow each other.
        """
        patches, seconds, before = 0, 0.0, None
        for record in self.records:
            if record["event"] == "resume":
                before = None
            elif record["event"] == "epoch" and "seconds" in record:
                if before:
                    patches += self.patches(record) - self.patches(before)
                    seconds += record["seconds"] - before["seconds"]
                before = record
        return patches / seconds if seconds else None

    def benchmark(self, runs: list[list[Row]]) -> float | None:
        """Return patches per second of the newest end-to-end benchmark of this training on this device, if any."""
        start = self.start
        device, dtype = re.search(r"\((.*)\)", start["device"])[1], start["precision"].split()[1]
        shape = words(self.config, start["patch_size"], start["patch_size"])
        wanted = "end to end", "rdn_fast", start["torch"], dtype, start["global_batch"], start["world"], shape
        found = [
            row.images_s
            for rows in runs
            for row in rows
            if (row.case, row.recipe, row.torch, row.dtype, row.batch, row.ranks, row.shape) == wanted
            and row.device.startswith(device)
        ]
        return found[-1] if found else None

    def means(self, self_ensemble: bool) -> dict[str, dict]:
        """Return {set: the means of its measures} of the newest evaluation of this kind."""
        found = [record for record in self.of("evaluation") if record["self_ensemble"] == self_ensemble]
        return {each["name"]: each["mean"] for each in found[-1]["sets"]} if found else {}


def read(folder: Path) -> dict[str, Run]:
    """Parse the runs of a folder. Those of NAMES that are not there are left out."""
    return {name: Run(name, _lines(folder / f"{name}.jsonl")) for name in NAMES if (folder / f"{name}.jsonl").is_file()}


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tables(models: dict[str, Run], runs: list[list[Row]]) -> str:
    """Return how each model of NAMES was trained, and its means beside bicubic's and the paper's."""
    how, means = [], []
    for name in NAMES:
        if name not in models:
            how.append([name, "not measured"])
            continue
        run = models[name]
        start, last, speed, ensemble = run.start, run.of("epoch")[-1], run.benchmark(runs), run.means(True)
        share = f"{run.images_s / speed:.1%}" if run.images_s and speed else "not measured"
        minutes = number(last["seconds"] / 60 if "seconds" in last else None, "{:.1f}")
        resumed = sum(record["step"] < last["step"] for record in run.of("resume"))
        what = [name, words(run.config), start["device"], f"{start['precision']}, torch {start['torch']}"]
        work = [f"{last['step']:,}", str(start["global_batch"]), f"{run.patches(last):,}"]
        how.append([*what, *work, three_digits(run.images_s), three_digits(run.in_steps), share, minutes, str(resumed)])
        for each, mean in run.means(False).items():
            paper = "{:.2f}, {:.4f}".format(*PAPER[each]) if each in PAPER else ""
            better = _quality(ensemble[each]) if each in ensemble else ""
            means.append([name, each, _quality(mean, "bicubic_"), f"**{_quality(mean)}**", better, paper])
    headings = "model", "shape", "device", "precision", "steps", "batch", "patches", "patches/s"
    more = "in the steps", "of the benchmark", "minutes", "resumed"
    return "\n\n".join([markdown([*headings, *more], how), markdown(_QUALITY, means)])


_QUALITY = ["model", "set", "bicubic", "RDN", "self-ensemble", "the paper's RDN"]


def _quality(mean: dict, prefix: str = "") -> str:
    psnr, compatible, ssim = (mean[f"{prefix}{key}"] for key in ("psnr_y", "psnr_y_compat", "ssim_y"))
    return f"{psnr:.2f} ({compatible:.2f}), {ssim:.4f}"


def quality_table(models: dict[str, Run], words: dict[str, str]) -> str:
    """Return README's quality: canonical PSNR-Y in dB of the models that have been trained."""
    lines = []
    for name, run in models.items():
        ensemble = run.means(True)
        for each, mean in run.means(False).items():
            better = number(ensemble.get(each, {}).get("psnr_y"), "{:.2f}")
            paper = f"{PAPER[each][0]:.2f}" if each in PAPER else ""
            lines.append([name, each, f"{mean['bicubic_psnr_y']:.2f}", f"**{mean['psnr_y']:.2f}**", better, paper])
    return markdown(_QUALITY, lines, words)


def charts(models: dict[str, Run]) -> dict[str, Figure]:
    """Return {file name: figure}: each model's validation over patches, and over minutes if it recorded them."""
    found = {}
    for name, run in models.items():
        validated = [epoch for epoch in run.of("epoch") if "psnr_y" in epoch]
        what = "PSNR-Y of the validation set, dB"
        keys = {"canonical": "psnr_y", "reference-compatible": "psnr_y_compat"}
        axes = {"thousands of patches": [run.patches(epoch) / 1e3 for epoch in validated]}
        if all("seconds" in epoch for epoch in validated):
            axes["minutes"] = [epoch["seconds"] / 60 for epoch in validated]
        panels = [
            Curve({label: (x, [epoch[key] for epoch in validated]) for label, key in keys.items()}, axis, what)
            for axis, x in axes.items()
        ]
        found[f"training_{name}.svg"] = Figure(f"{name}, trained on {run.start['device']}", panels)
    return found


def collect(outputs: Path, weights: Path, evaluations: list[Path]) -> list[dict]:
    """Return the records to keep of a run.

    UserError if the weights are not those of its last step, in float16, or an evaluation is of other weights.
    """
    records = [record for record in _lines(outputs / "metrics.jsonl") if record["event"] in _KEPT]
    last, ours = (convert.read_weights(path).state for path in (outputs / "last.pth", weights))
    if last.keys() != ours.keys() or not all(torch.equal(last[key].half(), ours[key].half()) for key in last):
        raise UserError(f"--weights {weights}: is not {outputs / 'last.pth'}; convert that one")
    content = weights.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    records.append({"event": "weights", "file": weights.name, "bytes": len(content), "sha256": sha256})
    for path in evaluations:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report.get("weights_sha256") != sha256:
            raise UserError(
                f"--eval {path}: is of {report['weights']} as it was, not of {weights} as it is; evaluate that one"
            )
        kept = {key: report[key] for key in ("parameters", "self_ensemble", "precision", "device", "versions")}
        sets = [{"name": each["name"], "images": len(each["images"]), "mean": each["mean"]} for each in report["sets"]]
        records.append({"event": "evaluation", **kept, "sets": sets})
    return records


def main(argv: list[str] | None = None) -> int:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.trained", description=__doc__, formatter_class=kind)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--outputs-dir", type=Path, required=True, help="of rdn-fast train")
    parser.add_argument("--weights", type=Path, required=True, help="the published file")
    parser.add_argument("--eval", type=Path, nargs="+", required=True, help="of rdn-fast eval --json, of these weights")
    options = parser.parse_args(argv)
    try:
        records = collect(options.outputs_dir, options.weights, options.eval)
        FOLDER.mkdir(exist_ok=True)
        lines = [json.dumps(record).encode() + b"\n" for record in records]
        atomic_write(FOLDER / f"{options.name}.jsonl", lambda file: file.writelines(lines))
    except (UserError, OSError) as error:
        print(f"trained: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

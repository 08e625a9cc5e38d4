"""Models that were trained in full: of each run a file bench/trained/NAME.jsonl, from which README's table and curve are rendered.

`python -m bench.trained NAME --outputs-dir DIR --weights FILE --eval JSON...` makes it of what `rdn-fast train`, `convert` and `eval --json`
left: the run's metrics less those of single steps, the weights' size and SHA-256, the means of the evaluations.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from bench import cases
from bench.results import HERE, Row
from rdn_fast.checkpoint import write_aside
from rdn_fast.config import Config

FOLDER = HERE / "trained"
NAMES = ("small_x2", "rdn_b_x2")  # those that README tells of
_KEPT = ("start", "resume", "loss_scale", "epoch")

# Means on the usual sets at x2 of the paper's RDN, which DIV2K has trained: (PSNR-Y, SSIM-Y), arXiv:1802.08797, table 2; with self-ensemble RDN+.
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
        """What was trained on what: the settings of the run."""
        return self.of("start")[0]

    def patches(self, epoch: dict) -> int:
        """Trained on until the end of this epoch; every epoch's last batch may be smaller than the others."""
        batch, size = self.start["global_batch"], self.start["patches_per_epoch"]
        steps = size // batch if self.start["drop_last"] else math.ceil(size / batch)
        whole, rest = divmod(epoch["step"], steps)
        return whole * min(size, steps * batch) + rest * batch

    @property
    def images_s(self) -> float:
        """Patches per second end to end, over all epochs."""
        seconds = before = 0.0
        for epoch in self.of("epoch"):
            patches = self.patches(epoch)
            seconds += (patches - before) / epoch["fps_end_to_end"]
            before = patches
        return before / seconds

    def benchmark(self, runs: list[list[Row]]) -> float | None:
        """Patches per second of the newest benchmark of just this training on this device, if there is one."""
        start = self.start
        device, dtype = re.search(r"\((.*)\)", start["device"])[1], start["precision"].split()[1]
        model = Config(**{field.name: start[field.name] for field in dataclasses.fields(Config)})
        shape = f"{cases.words(model)}, {start['patch_size']}x{start['patch_size']}"
        same = [
            row for rows in runs for row in rows if row.case in ("end to end", "long run") and row.recipe == "rdn_fast"
            and row.device.startswith(device) and (row.torch, row.dtype, row.batch, row.shape) == (start["torch"], dtype, start["global_batch"], shape)
        ]  # fmt: skip
        return same[-1].images_s if same else None

    def means(self, self_ensemble: bool) -> dict[str, dict]:
        """{set: the means of its measures} of the newest evaluation of this kind."""
        found = [record for record in self.of("evaluation") if record["self_ensemble"] == self_ensemble]
        return {each["name"]: each["mean"] for each in found[-1]["sets"]} if found else {}


def read(folder: Path) -> dict[str, Run]:
    """The runs of a folder by name; those of NAMES that are not there are left out."""
    return {name: Run(name, _lines(folder / f"{name}.jsonl")) for name in NAMES if (folder / f"{name}.jsonl").is_file()}


def collect(outputs: Path, weights: Path, evaluations: list[Path]) -> list[dict]:
    """The records to keep of a run. ValueError when an evaluation is of other weights."""
    records = [record for record in _lines(outputs / "metrics.jsonl") if record["event"] in _KEPT]
    content = weights.read_bytes()
    records.append({"event": "weights", "file": weights.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    for path in evaluations:
        report = json.loads(path.read_text(encoding="utf-8"))
        if Path(report["weights"]).name != weights.name:
            raise ValueError(f"{path}: evaluates {Path(report['weights']).name}, not {weights.name}")
        kept = {key: report[key] for key in ("parameters", "self_ensemble", "precision", "device", "versions")}
        sets = [{"name": each["name"], "images": len(each["images"]), "mean": each["mean"]} for each in report["sets"]]
        records.append({"event": "evaluation", **kept, "sets": sets})
    return records


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.trained", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--outputs-dir", type=Path, required=True, help="of rdn-fast train")
    parser.add_argument("--weights", type=Path, required=True, help="the file that is given away")
    parser.add_argument("--eval", type=Path, nargs="+", required=True, metavar="JSON", help="of rdn-fast eval --json, of just these weights")
    options = parser.parse_args()
    records = collect(options.outputs_dir, options.weights, options.eval)
    FOLDER.mkdir(exist_ok=True)
    write_aside(FOLDER / f"{options.name}.jsonl", lambda file: file.writelines(json.dumps(record).encode() + b"\n" for record in records))


if __name__ == "__main__":
    main()

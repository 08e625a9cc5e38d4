"""Models trained in full: a file bench/trained/NAME.jsonl for each run, from which tables and curves are rendered.

`python -m bench.trained NAME --outputs-dir DIR --weights FILE --eval JSON...` makes it of what `rdn-fast train`,
`convert` and `eval --json` left: the run's settings, its metrics less those of single steps, the weights' size and
SHA-256, the means of the evaluations. A model of others has no run: without --outputs-dir its evaluations are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from bench.models import words
from bench.results import HERE, Row
from rdn_fast.config import ModelConfig
from rdn_fast.config.settings_file import read_settings
from rdn_fast.errors import UserError
from rdn_fast.files import atomic_write
from rdn_fast.training.run_folder import SETTINGS
from rdn_fast.weights import convert
from rdn_fast.weights.load import sha256

FOLDER = HERE / "trained"
NAMES = ("small_x2", "small_x3", "small_x4", "rdn_b_x2")  # the published ones; each ends in its scale
# Models of others that are measured here: {name: what the tables call them}.
OTHERS = {
    "idealo_psnr_small_x2": "RDN, idealo's psnr-small",
    "idealo_psnr_small_8_bits_x2": "RDN, idealo's psnr-small in UpscalerJS's 8 bits",
}
_KEPT = ("start", "resume", "loss_scale", "epoch")


@dataclass(frozen=True)
class Run:
    """One model's records, in the order of the file."""

    name: str
    records: list[dict]

    def of(self, event: str) -> list[dict]:
        return [record for record in self.records if record["event"] == event]

    @property
    def scale(self) -> int:
        return int(self.name.rpartition("_x")[2])

    @property
    def start(self) -> dict:
        """The settings of the run."""
        return self.of("start")[0]

    @property
    def devices(self) -> str:
        """The devices of all pieces of the run, in words."""
        return ", then ".join(dict.fromkeys(piece["device"] for piece in self.of("start") + self.of("resume")))

    @property
    def begun_from(self) -> str:
        """The file of weights that the run began from, by name."""
        return self.start.get("weights_file", "not recorded") or "random weights"

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

    @property
    def parameters(self) -> int:
        return self.of("evaluation")[-1]["parameters"]


def read(folder: Path) -> dict[str, Run]:
    """Parse the records of a folder. Those of NAMES and OTHERS that are not there are left out."""
    paths = {name: folder / f"{name}.jsonl" for name in (*NAMES, *OTHERS)}
    return {name: Run(name, _lines(path)) for name, path in paths.items() if path.is_file()}


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def collect(outputs: Path | None, weights: Path, evaluations: list[Path]) -> list[dict]:
    """Return the records to keep of a model; outputs: None for one of others.

    UserError if the weights are not those of the run's last step, in float16, or an evaluation is of other weights.
    """
    records = [] if outputs is None else _of_run(outputs, weights)
    hashed = {"file": weights.name, "sha256": sha256(weights)}
    if weights.is_file():
        hashed["bytes"] = weights.stat().st_size
    records.append({"event": "weights", **hashed, "date": datetime.now().date().isoformat()})
    for path in evaluations:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report.get("weights_sha256") != hashed["sha256"]:
            raise UserError(
                f"--eval {path}: is of {report['weights']} as it was, not of {weights} as it is; evaluate that one"
            )
        kept = {key: report[key] for key in ("parameters", "self_ensemble", "precision", "device", "versions")}
        sets = [{"name": each["name"], "images": len(each["images"]), "mean": each["mean"]} for each in report["sets"]]
        records.append({"event": "evaluation", **kept, "sets": sets})
    return records


def _of_run(outputs: Path, weights: Path) -> list[dict]:
    last, ours = (convert.read_weights(path).state for path in (outputs / "last.pth", weights))
    if last.keys() != ours.keys() or not all(torch.equal(last[key].half(), ours[key].half()) for key in last):
        raise UserError(f"--weights {weights}: is not {outputs / 'last.pth'}; convert that one")
    settings = read_settings(outputs / SETTINGS, {})
    for name in [name for name in settings if name.endswith(("_path", "_file", "_dir"))]:
        path = settings.pop(name)  # of this machine
        if name != "outputs_dir":
            settings[name] = Path(path).name
    metrics = [record for record in _lines(outputs / "metrics.jsonl") if record["event"] in _KEPT]
    return [{"event": "settings", **settings}, *metrics]


def main(argv: list[str] | None = None) -> int:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.trained", description=__doc__, formatter_class=kind)
    parser.add_argument("name", choices=(*NAMES, *OTHERS))
    parser.add_argument("--outputs-dir", type=Path, help="of rdn-fast train; none for a model of others")
    parser.add_argument("--weights", type=Path, required=True, help="the published file")
    parser.add_argument("--eval", type=Path, nargs="+", required=True, help="of rdn-fast eval --json, of these weights")
    options = parser.parse_args(argv)
    try:
        if (options.outputs_dir is None) != (options.name in OTHERS):
            raise UserError(f"--outputs-dir: goes with {', '.join(NAMES)}, and with no other")
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

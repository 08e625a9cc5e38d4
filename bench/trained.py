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
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import cases
from bench.results import HERE, Row
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.files import atomic_write
from rdn_fast.weights import convert

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

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return ModelConfig(**{field.name: self.start[field.name] for field in dataclasses.fields(ModelConfig)})

    def patches(self, epoch: dict) -> int:
        """Trained on until the end of this epoch; every epoch's last batch may be smaller than the others."""
        batch, size = self.start["global_batch"], self.start["patches_per_epoch"]
        steps = size // batch if self.start["drop_last"] else math.ceil(size / batch)
        whole, rest = divmod(epoch["step"], steps)
        return whole * min(size, steps * batch) + rest * batch

    @property
    def in_steps(self) -> float:
        """Patches per second end to end as every epoch has counted them: what lies between epochs is left out."""
        seconds = before = 0.0
        for epoch in self.of("epoch"):
            patches = self.patches(epoch)
            seconds += (patches - before) / epoch["fps_end_to_end"]
            before = patches
        return before / seconds

    @property
    def images_s(self) -> float | None:
        """Patches per second by the clock on the wall, validations and checkpoints included; of each start all before its first epoch's end is left out.

        None where no two epochs follow each other with that clock.
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
        """Patches per second end to end in the newest benchmark of just this training on this device, if there is one."""
        start = self.start
        device, dtype = re.search(r"\((.*)\)", start["device"])[1], start["precision"].split()[1]
        shape = f"{cases.words(self.config)}, {start['patch_size']}x{start['patch_size']}"
        same = [
            row
            for rows in runs
            for row in rows
            if (row.case, row.recipe, row.torch, row.dtype) == ("end to end", "rdn_fast", start["torch"], dtype)
            and row.device.startswith(device)
            and (row.batch, row.ranks, row.shape) == (start["global_batch"], start["world"], shape)
        ]
        return same[-1].images_s if same else None

    def means(self, self_ensemble: bool) -> dict[str, dict]:
        """{set: the means of its measures} of the newest evaluation of this kind."""
        found = [record for record in self.of("evaluation") if record["self_ensemble"] == self_ensemble]
        return {each["name"]: each["mean"] for each in found[-1]["sets"]} if found else {}


def read(folder: Path) -> dict[str, Run]:
    """The runs of a folder by name; those of NAMES that are not there are left out."""
    return {name: Run(name, _lines(folder / f"{name}.jsonl")) for name in NAMES if (folder / f"{name}.jsonl").is_file()}


def collect(outputs: Path, weights: Path, evaluations: list[Path]) -> list[dict]:
    """The records to keep of a run. UserError when the weights are not those of its last step, in float16, or an evaluation is of others."""
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


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.trained", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--outputs-dir", type=Path, required=True, help="of rdn-fast train")
    parser.add_argument("--weights", type=Path, required=True, help="the file that is given away")
    parser.add_argument(
        "--eval",
        type=Path,
        nargs="+",
        required=True,
        metavar="JSON",
        help="of rdn-fast eval --json, of just these weights",
    )
    options = parser.parse_args(argv)
    try:
        records = collect(options.outputs_dir, options.weights, options.eval)
        FOLDER.mkdir(exist_ok=True)
        atomic_write(
            FOLDER / f"{options.name}.jsonl",
            lambda file: file.writelines(json.dumps(record).encode() + b"\n" for record in records),
        )
    except (UserError, OSError) as error:
        print(f"trained: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

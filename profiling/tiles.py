"""`python -m profiling.tiles pad|precision|speed`: what tiles and low precision cost in pictures, as tiles.csv.

pad: pictures in tiles with little padding against the whole ones, in uint8 levels, and the PSNR-Y that they lose
against HR. precision: PSNR-Y in low precision, all of it (O2) or all but the last convolution (O1), against float32's.
On a CPU low-precision convolutions are float32 ones of rounded inputs, rounded: what devices with float32 sums compute,
without waiting for their emulation. Such rows say simulated. speed: seconds for a tile by itself, for each million of
its own LR pixels: what its padding costs is counted, what a picture's edge saves is not.
A run replaces the rows of its kind in the file.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from bench import results, timing
from bench.case import Contender
from bench.models import words
from rdn_fast import devices, precision
from rdn_fast.data.images import image_files, read_image
from rdn_fast.data.pairs import Pair, degrade
from rdn_fast.errors import UserError
from rdn_fast.evaluation import metrics
from rdn_fast.model import RDN
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.precision import dtype_name
from rdn_fast.weights.convert import load_model
from rdn_fast.weights.shipped import select

FILE = Path(__file__).with_name("tiles.csv")
COLUMNS = (
    *("date", "commit", "command", "device", "threads", "torch", "rdn_fast", "model", "weights", "kind", "what", "set"),
    *("dtype", "level", "tile", "tile_pad", "max_level", "mean_level", "psnr_whole", "psnr_y", "loss_y"),
    *("seconds_mpixel", "seconds_min", "seconds_max"),
)
TILES, PADS = (32, 64, 128), (0, 5, 10, 20, "exact")
EDGES, ROUNDS = (48, 64, 96, 128, 160, 192, 256, 384, 512), 5


def pads(model: RDN, pairs: list[Pair], _) -> Iterator[dict]:
    """Yield rows of whole pictures against tiles in float32.

    max_level, mean_level: largest and mean difference; psnr_whole: PSNR in dB against the whole, over the set.
    """
    scale = model.config.scale
    whole = [Upscaler(model, tile=0, fp32=True)(pair.lr) for pair in pairs]
    at_best = _mean_psnr(whole, pairs, scale)
    for tile in TILES:
        for pad in PADS:
            tiled = [Upscaler(model, tile, pad, fp32=True)(pair.lr) for pair in pairs]
            each = [np.abs(a.astype(np.int16) - b).ravel() for a, b in zip(tiled, whole, strict=True)]
            difference, psnr = np.concatenate(each), _mean_psnr(tiled, pairs, scale)
            mse = np.mean(np.square(difference, dtype=np.float64))
            levels = {"max_level": difference.max(), "mean_level": difference.mean()}
            levels["psnr_whole"] = 10 * np.log10(255**2 / mse) if mse else ""
            yield {
                "dtype": "float32",
                "tile": tile,
                "tile_pad": pad,
                **levels,
                "psnr_y": psnr,
                "loss_y": at_best - psnr,
            }


def precisions(model: RDN, pairs: list[Pair], device: torch.device) -> Iterator[dict]:
    """Yield rows of whole pictures in each precision; loss_y in dB."""
    at_best, model.rdb = None, "naive"
    for level, dtype in (("O0", "auto"), ("O1", "fp16"), ("O1", "bf16"), ("O2", "fp16"), ("O2", "bf16")):
        chosen = precision.resolve(level, dtype, device)
        chosen.apply(model)
        simulated = devices.is_host(device) and chosen.compute != torch.float32
        with torch.inference_mode(), _Rounded() if simulated else nullcontext():
            outputs = (model(_floats(pair.lr, device)) for pair in pairs)
            pictures = [output[0].permute(1, 2, 0).float().mul(255).cpu().numpy() for output in outputs]
        psnr = _mean_psnr(pictures, pairs, model.config.scale)
        at_best = psnr if at_best is None else at_best
        how = {"kind": "simulated" if simulated else "measured", "dtype": dtype_name(chosen.compute)}
        yield {**how, "level": level, "tile": 0, "psnr_y": psnr, "loss_y": at_best - psnr}


def _floats(image: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return uint8 [H, W, 3] as float32 [1, 3, H, W] in 0..1, in the device's memory format."""
    x = torch.from_numpy(np.array(image))[None].to(device).permute(0, 3, 1, 2)
    return x.float().div_(255).contiguous(memory_format=devices.memory_format(device))


class _Rounded(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is not F.conv2d:
            return function(*arguments, **(options or {}))
        return function(*(tensor.float() for tensor in arguments), **(options or {})).to(arguments[0].dtype)


def speeds(model: RDN, _, device: torch.device) -> Iterator[dict]:
    """Yield rows of tiles with the default padding; medians of ROUNDS in turn."""
    upscaler = Upscaler(model, tile=0)
    pad, dtype = upscaler.grid.pad, dtype_name(upscaler.precision.compute)

    def fresh(edge: int) -> tuple[np.ndarray]:
        padded = edge + 2 * pad
        return (np.random.default_rng().integers(0, 256, (padded, padded, 3), np.uint8),)

    windows = {edge: Contender(upscaler, partial(fresh, edge)) for edge in EDGES}
    for window in windows.values():
        timing.once(window, device)
    for edge, times in timing.interleave(windows, device, ROUNDS).items():
        seconds = [second / edge**2 * 1e6 for second in times.rounds]
        spread = {"seconds_mpixel": float(np.median(seconds)), "seconds_min": min(seconds), "seconds_max": max(seconds)}
        yield {"dtype": dtype, "tile": edge, "tile_pad": pad, **spread}


KINDS = {"pad": pads, "precision": precisions, "speed": speeds}


def _mean_psnr(pictures: list[np.ndarray], pairs: list[Pair], scale: int) -> float:
    each = [metrics.psnr_y(picture, pair.hr, scale) for picture, pair in zip(pictures, pairs, strict=True)]
    return float(np.mean(each))


def write(rows: list[dict], file: Path) -> None:
    """Replace the rows of their kind and model in the file."""
    kept = list(csv.DictReader(file.open(encoding="utf-8", newline=""))) if file.exists() else []
    ours = {(row["what"], row["model"]) for row in rows}
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([row for row in kept if (row["what"], row["model"]) not in ours])
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(KINDS))
    parser.add_argument("--data", metavar="DIR", help="folder of HR pictures (pad, precision)")
    parser.add_argument("--weights-file", metavar="WEIGHTS", help="default: the model that comes with rdn_fast")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(argv)
    try:
        if given.what != "speed" and given.data is None:
            raise UserError(f"--data DIR is missing, which {given.what} needs: a folder of HR pictures")
        device = devices.pick(given.device)
        model = load_model(given.weights_file, device)
        files = image_files(given.data) if given.data else []
        pairs = [degrade(path.stem, read_image(path), model.config.scale) for path in files]
        run = results.conditions(device) | {"command": f"python -m profiling.tiles {given.what}"}
        run |= {"threads": torch.get_num_threads(), "model": words(model.config), "kind": "measured"}
        run |= {"weights": Path(given.weights_file or select().file).name, "what": given.what}
        run |= {"set": Path(given.data).name if given.data else ""}
        rows = []
        for row in KINDS[given.what](model, pairs, device):
            shown = (
                f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
            print(*shown, sep="  ", flush=True)
            rows.append(run | row)
    except UserError as error:
        print(f"tiles: error: {error}", file=sys.stderr)
        return 2
    write(rows, FILE)
    print(f"written: {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`rdn-fast upscale`: files in, files out. The next pictures are decoded, and those before encoded, while the model computes one."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count

import numpy as np
from PIL import Image

from rdn_fast import devices
from rdn_fast.errors import Failure, UserError, one_line
from rdn_fast.files import atomic_write
from rdn_fast.model import describe
from rdn_fast.ordered_map import ordered_map
from rdn_fast.pictures.paths import Job, plan
from rdn_fast.pictures.picture import Picture, encode, enlarge, fit, model_passes, read_picture
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.pictures.upscale import check_scale
from rdn_fast.terminal import Bar
from rdn_fast.weights.convert import SHIPPED, load_model


def upscale_files(
    input: list[str],
    output: str,
    weights_file: str | None,
    scale: int | None,
    tile: int | None,
    tile_pad: str,
    suffix: str,
    ext: str,
    fp32: bool,
    self_ensemble: bool,
    recursive: bool,
    overwrite: bool,
    max_pixels: int,
    device: str,
) -> int:
    """Up-scale pictures as the command's flags say; returns its exit code: 0, or 1 when some pictures could not be up-scaled.

    Raises UserError for mistakes in flags and names, all found before a picture is read, and when no picture could be up-scaled;
    Failure when some could, and then one could not be written (disk full).
    """
    if tile is not None and tile < 0:
        raise UserError(f"--tile {tile}: give an edge in LR pixels, or 0 for no tiles")
    if tile_pad != "exact" and not tile_pad.isdecimal():
        raise UserError(f"--tile-pad {tile_pad}: give a number of LR pixels, or exact")
    if max_pixels < 0:
        raise UserError(f"--max-pixels {max_pixels}: give a number of pixels, or 0 for no limit")
    jobs = plan(input, output, suffix, ext, recursive, print)
    model = load_model(weights_file, device)
    check_scale(scale, model.config.scale, "--scale")
    todo = [job for job in jobs if overwrite or not job.target.exists()]
    made = failed = 0
    with _pillow_unlimited(), Bar("pictures", len(todo)) as bar:
        upscaler = Upscaler(
            model, tile, tile_pad if tile_pad == "exact" else int(tile_pad), fp32, self_ensemble, bar.say
        )
        _make_folders(todo)
        where = devices.describe(next(model.parameters()).device)
        bar.say(f"{SHIPPED.name if weights_file is None else weights_file}: {describe(model.config)}, on {where}")
        with (
            closing(_enlarged(todo, upscaler, max_pixels, bar)) as results,
            closing(ordered_map(_write, results, *_encoders())) as written,
        ):
            for job, ended in written:
                if isinstance(ended, OSError):
                    line = f"{job.target}: cannot be written ({ended.strerror or ended}); free some space, or choose another -o"
                    raise (
                        Failure(f"{line}; those before it are whole, and the same command goes on behind them")
                        if made
                        else UserError(line)
                    )
                if isinstance(ended, list):
                    made += 1
                    for note in ended:
                        bar.say(f"{job.source}: {note}")
                elif len(jobs) == 1:
                    raise UserError(f"{job.source}: {ended}")
                else:
                    failed += 1
                    bar.say(f"failed {job.source}: {ended}")
    if failed == len(jobs):
        raise UserError(
            f"-i {' '.join(input)}: none of the {failed} pictures could be up-scaled; the lines before this one say why"
        )
    there = f", {len(jobs) - len(todo)} there already (--overwrite makes them anew)" if len(todo) < len(jobs) else ""
    print(
        f"{output}: {made} {'picture' if made == 1 else 'pictures'} made{there}"
        + (f", {failed} failed" if failed else "")
    )
    return 1 if failed else 0


def _enlarged(jobs: list[Job], upscaler: Upscaler, max_pixels: int, bar: Bar) -> Iterator[tuple[Job, Picture | str]]:
    """Pictures through the model, or why that cannot be; the bar is told of each of their parts, for one may take minutes."""

    def load(job: Job) -> tuple[Job, Picture | str]:
        try:
            return job, fit(read_picture(job.source, max_pixels), upscaler.scale, job.format)
        except ValueError as error:
            return job, str(error)

    with closing(ordered_map(load, jobs, workers=2, ahead=2)) as decoded:
        for number, (job, picture) in enumerate(decoded):

            def tell(share: float, number: int = number, name: str = job.source.name) -> None:
                bar.reach(number + share, f"{name} {share:.0%}" if share < 1 else name)

            yield job, _enlarge(picture, upscaler, tell) if isinstance(picture, Picture) else picture
            del picture  # it need not wait for the next one


def _enlarge(picture: Picture, upscaler: Upscaler, tell: Callable[[float], None]) -> Picture | str:
    times, done = model_passes(picture), count()

    def one_time(image: np.ndarray) -> np.ndarray:
        before = next(done)
        upscaler.progress = lambda share: tell((before + share) / times)
        return upscaler(image)

    try:
        return enlarge(picture, one_time)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not devices.is_out_of_memory(error):
            raise
        return "there is not memory enough for it; a smaller --tile may help"


def _encoders() -> tuple[int, int]:
    """Threads that encode, and pictures that may wait for them: each has the memory of a result."""
    workers = min(4, devices.cores())
    return workers, workers


def _write(result: tuple[Job, Picture | str]) -> tuple[Job, list[str] | str | OSError]:
    """The picture's notes once its file is there; else why it could not be made, or could not be written."""
    job, picture = result
    if isinstance(picture, str):
        return job, picture
    try:
        content = encode(picture, job.format)
    except Exception as error:  # of Pillow
        return job, f"cannot be encoded ({one_line(error)})"
    try:
        atomic_write(job.target, lambda file: file.write(content))
    except OSError as error:
        return job, error
    return job, picture.notes


def _make_folders(jobs: list[Job]) -> None:
    for folder in {job.target.parent for job in jobs}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"-o {folder}: cannot be written ({error.strerror}); choose another folder") from None


@contextmanager
def _pillow_unlimited() -> Iterator[None]:
    """--max-pixels takes the place of Pillow's own limit, and its remarks on odd files are left out."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit

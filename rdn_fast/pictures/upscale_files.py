"""`rdn-fast upscale`: files in, files out. Threads decode and encode other pictures while the model computes one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from typing import NamedTuple

import numpy as np
from PIL import Image

from rdn_fast import devices
from rdn_fast.errors import Failure, UserError, cannot_write, one_line
from rdn_fast.files import atomic_write
from rdn_fast.model import RDN
from rdn_fast.ordered_map import ordered_map
from rdn_fast.pictures.encode import encode, fit
from rdn_fast.pictures.enlarge import model_passes
from rdn_fast.pictures.formats import check_quality, with_quality
from rdn_fast.pictures.paths import Job, plan
from rdn_fast.pictures.picture import Picture, read_picture
from rdn_fast.pictures.resize import resize
from rdn_fast.pictures.sizes import OutputSize, Steps
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.terminal import Bar, print_line
from rdn_fast.weights.onnx_model import OnnxModel, load_any_model
from rdn_fast.weights.shipped import check_one_given, check_scale, for_each_scale

# Errors of writing that are of one name. After others, such as a full disk, nothing more can be written.
_OF_ONE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)


def upscale_files(
    input: list[str],
    output: str,
    weights_file: str | None,
    model_name: str | None,
    scale: int | None,
    outscale: float | None,
    width: int | None,
    height: int | None,
    longest: int | None,
    tile: int | None,
    tile_pad: str,
    suffix: str,
    ext: str,
    quality: int | None,
    lossless: bool | None,
    fp32: bool,
    self_ensemble: bool,
    recursive: bool,
    overwrite: bool,
    max_pixels: int,
    device: str,
) -> int:
    """Up-scale pictures as the flags of `rdn-fast upscale` say. Return its exit code: 0, or 1 when some failed.

    Raises UserError for mistakes in flags and names, all found before a picture is read, and when no picture could be
    up-scaled. Raises Failure when a picture could not be written (disk full) after others were.
    """
    _check_flags(tile, tile_pad, max_pixels)
    wanted = OutputSize(outscale, width, height, longest)
    wanted.check("--")
    jobs, refused = plan(input, output, suffix, ext, recursive, print_line)
    check_quality(quality, lossless, (job.format for job in jobs))
    models = _load(weights_file, model_name, scale, wanted, device)
    todo = [job for job in jobs if overwrite or not os.path.exists(job.target)]
    with _pillow_unlimited(), Bar("pictures", len(todo)) as bar:
        pad = tile_pad if tile_pad == "exact" else int(tile_pad)
        upscalers = {
            model.config.scale: Upscaler(model, tile, pad, fp32, self_ensemble, bar.say) for model in models.values()
        }
        _make_folders(todo)
        for name, model in models.items():
            bar.say(f"{name}: {model.in_words}, on {devices.describe(model.device)}")
        for source, reason in refused.items():
            bar.say(f"failed {source}: {reason}")
        only_one = len(jobs) + len(refused) == 1
        made, failed = _make_pictures(
            todo, upscalers, _Settings(wanted, max_pixels, quality, lossless, overwrite), bar, only_one
        )
    there_already = len(jobs) - made - failed
    failed += len(refused)
    if failed == len(jobs) + len(refused):
        why = "the lines before this one say why"
        raise UserError(f"-i {' '.join(input)}: none of the {failed} pictures could be up-scaled; {why}")
    result = f"{output}: {made} {'picture' if made == 1 else 'pictures'} made"
    if there_already:
        result += f", {there_already} there already (--overwrite makes them anew)"
    print_line(result + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


def _load(
    weights_file: str | None, model_name: str | None, scale: int | None, wanted: OutputSize, device: str
) -> dict[str, RDN | OnnxModel]:
    """Return {name: model} of the given weights, or of the shipped models that pictures may need, one for a scale."""
    check_one_given(weights_file, model_name)
    any_factor = " (--outscale takes any factor)"
    if weights_file is not None:
        model = load_any_model(weights_file, device).frozen()
        check_scale(scale, model.config.scale, "--scale", any_factor)
        return {weights_file: model}
    shipped = for_each_scale(model_name, scale, "--", any_factor)
    chosen = [shipped[each] for each in wanted.possible_scales(shipped)]
    return {each.name: load_any_model(each.file, device).frozen() for each in chosen}


def _check_flags(tile: int | None, tile_pad: str, max_pixels: int) -> None:
    if tile is not None and tile < 0:
        raise UserError(f"--tile {tile}: give an edge in LR pixels, or 0 for no tiles")
    if tile_pad != "exact" and not tile_pad.isdecimal():
        raise UserError(f"--tile-pad {tile_pad}: give a number of LR pixels, or exact")
    if max_pixels < 0:
        raise UserError(f"--max-pixels {max_pixels}: give a number of pixels, or 0 for no limit")


class _Settings(NamedTuple):
    """What the flags say of every picture."""

    wanted: OutputSize
    max_pixels: int
    quality: int | None
    lossless: bool | None
    overwrite: bool


def _make_pictures(
    jobs: list[Job], upscalers: dict[int, Upscaler], settings: _Settings, bar: Bar, only_one: bool
) -> tuple[int, int]:
    """Make all pictures. Return how many were made, and how many failed, which is said in a line each.

    upscalers: {scale: Upscaler}; each picture takes the best one for its size.
    only_one: the command was given one picture, whose failure is a UserError.
    """
    made = failed = 0
    with (
        closing(_read_and_resize(jobs, upscalers, settings, bar)) as pictures,
        closing(ordered_map(lambda picture: _encode_and_write(picture, settings), pictures, *_encoders())) as written,
    ):
        for job, result in written:
            if isinstance(result, FileExistsError):
                bar.say(f"kept {job.target}: it appeared during the work; --overwrite makes it anew")
            elif isinstance(result, OSError) and not only_one and result.errno in _OF_ONE:
                failed += 1
                bar.say(f"failed {job.source}: {job.target} cannot be written ({result.strerror})")
            elif isinstance(result, OSError):
                line = f"{job.target}: {cannot_write(result, '-o')}"
                if not made:
                    raise UserError(line)
                raise Failure(f"{line}; those before it are whole, and the same command goes on behind them")
            elif isinstance(result, list):
                made += 1
                for note in result:
                    bar.say(f"{job.source}: {note}")
            elif only_one:
                raise UserError(f"{job.source}: {result}")
            else:
                failed += 1
                bar.say(f"failed {job.source}: {result}")
    return made, failed


def _read_and_resize(
    jobs: list[Job], upscalers: dict[int, Upscaler], settings: _Settings, bar: Bar
) -> Iterator[tuple[Job, Picture | str]]:
    """Yield each picture at its new size, or why that failed. Two threads decode up to two pictures ahead.

    The bar shows the share of the present picture that is done: one may take minutes.
    """

    def read(job: Job) -> tuple[Job, Picture | str, Steps | None]:
        try:
            picture = read_picture(job.source, settings.max_pixels)
            scale = settings.wanted.best_scale(*picture.size, upscalers)
            steps = settings.wanted.steps(*picture.size, scale)
            steps.check(settings.max_pixels, "--max-pixels")
            picture = with_quality(picture, job.format, settings.quality, settings.lossless)
            return job, fit(picture, steps.size, job.format), steps
        except ValueError as error:
            return job, str(error), None

    with closing(ordered_map(read, jobs, workers=2, ahead=2)) as decoded:
        for number, (job, picture, steps) in enumerate(decoded):

            def report(share: float, number: int = number, name: str = job.source.name) -> None:
                bar.set_done(number + share, f"{name} {share:.0%}" if share < 1 else name)

            yield job, picture if steps is None else _resize(picture, steps, upscalers, report)
            del picture  # frees its memory before the next one is awaited


def _resize(
    picture: Picture, steps: Steps, upscalers: dict[int, Upscaler], report: Callable[[float], None]
) -> Picture | str:
    """Return the picture at its new size, or why that failed. report: called with the share that is done."""
    upscaler = upscalers[steps.scale]
    calls = model_passes(picture)
    work = [steps.scale ** (2 * i) for i in range(steps.passes) for _ in range(calls)]  # of each call of the model
    started = count()

    def one_call(image: np.ndarray) -> np.ndarray:
        call = next(started)
        upscaler.progress = lambda share: report((sum(work[:call]) + work[call] * share) / sum(work))
        return upscaler(image)

    try:
        resized = resize(picture, steps, one_call)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not devices.is_out_of_memory(error):
            raise
        return "there is not memory enough for it; a smaller --tile may help"
    if made := steps.describe(always=len(upscalers) > 1):
        resized.notes.insert(0, made)
    return resized


def _encoders() -> tuple[int, int]:
    """Return how many threads encode, and how many pictures may wait for them. Each takes the memory of a result."""
    workers = min(4, devices.cores())
    return workers, workers


def _encode_and_write(resized: tuple[Job, Picture | str], settings: _Settings) -> tuple[Job, list[str] | str | OSError]:
    """Write a picture's file; without settings.overwrite only where there is none.

    Return the picture's notes, or why it failed, or the error of writing.
    """
    job, picture = resized
    if isinstance(picture, str):
        return job, picture
    try:
        content = encode(picture, job.format)
    except Exception as error:  # Pillow raises nearly anything
        return job, f"cannot be encoded ({one_line(error)})"
    try:
        atomic_write(job.target, lambda file: file.write(content), settings.overwrite)
    except OSError as error:
        return job, error
    return job, picture.notes


def _make_folders(jobs: list[Job]) -> None:
    for folder in {job.target.parent for job in jobs}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"-o {folder}: {cannot_write(error, 'folder')}") from None


@contextmanager
def _pillow_unlimited() -> Iterator[None]:
    """Switch off Pillow's limit on pixels, which --max-pixels replaces."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit

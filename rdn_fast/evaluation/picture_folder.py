"""The pairs of a folder of HR images, each read when it is needed: host memory does not grow with the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rdn_fast.data.degradation import Degradation
from rdn_fast.data.images import image_files, read_image
from rdn_fast.data.pairs import Pair, degrade
from rdn_fast.errors import Failure, UserError
from rdn_fast.evaluation import metrics
from rdn_fast.ordered_map import ordered_map
from rdn_fast.terminal import printable


class PictureFolder(Sequence[Pair]):
    """The pairs of a folder's images in the order of their paths, read when they are indexed.

    Raises Failure where a file has changed since the folder was opened. `sizes`: height and width of the LR images.
    `lr_made_by`: how LR images are made, in words.
    """

    def __init__(
        self, folder: str | Path, scale: int, say: Callable[[str], None], strict: bool, degradation: Degradation
    ):
        """Read every file once, and keep what can be evaluated. say, strict: as of datasets.load_pairs()."""
        degradation.check_scale(scale)
        folder, self._scale, self._degradation = Path(folder), scale, degradation
        self.lr_made_by = degradation.in_words
        files = image_files(folder)
        if any(file.stem.endswith("_LR") for file in files) and (hr := [f for f in files if f.stem.endswith("_HR")]):
            say(f"{folder}: its {len(hr)} files *_HR; {len(files) - len(hr)} others are left out")
            files = hr
        self._files: list[Path] = []
        self._states: list[tuple[int, int] | None] = []
        self.sizes: list[tuple[int, int]] = []
        for file, state, size in ordered_map(self._check, files, workers=2, ahead=4):
            if not isinstance(size, str):
                self._files.append(file)
                self._states.append(state)
                self.sizes.append(size)
            elif strict:
                raise UserError(f"{size}; remove or repair it, or leave out --strict to skip it")
            else:
                say(f"skipped {size}")
        if not self._files:
            raise UserError(
                f"{folder}: none of its {len(files)} files is an image that can be evaluated; give a folder of images"
            )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Pair:
        file, reason = self._files[i], "was changed while it was in use"
        try:
            if _state(file) == self._states[i]:
                return self._read(file)
        except ValueError as error:
            reason = f"can no longer be read ({error})"
        raise Failure(f"{file}: {reason}; restore it and start again (a training run with --resume auto)")

    def _check(self, file: Path) -> tuple[Path, tuple[int, int] | None, tuple[int, int] | str]:
        """Return the file, its state, and the size of its LR image or why it cannot be evaluated."""
        smallest, state = metrics.smallest_side(self._scale), _state(file)
        try:
            pair = self._read(file)
        except ValueError as error:
            return file, state, f"{file}: {error}"
        height, width = pair.hr.shape[:2]
        if min(height, width) < smallest:
            needed = f"PSNR and SSIM at x{self._scale} need {smallest} on each side"
            return file, state, f"{file}: {width}x{height} pixels; {needed}"
        return file, state, pair.lr.shape[:2]

    def _read(self, file: Path) -> Pair:
        return degrade(printable(file.stem), read_image(file), self._scale, degradation=self._degradation)


def _state(file: Path) -> tuple[int, int] | None:
    """Return size and time of change; None where the file cannot be found, which reading it tells in words."""
    try:
        state = os.stat(file)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def read_ahead(pairs: Sequence[Pair], indices: Iterable[int]) -> Iterator[Pair]:
    """Yield these pairs in order, the next of them read in a thread meanwhile."""
    return ordered_map(pairs.__getitem__, indices, workers=1, ahead=2)

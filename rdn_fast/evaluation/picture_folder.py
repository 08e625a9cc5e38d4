"""The pairs of a folder of HR images, each read when it is needed: host memory does not grow with the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rdn_fast.data.degradation import Degradation
from rdn_fast.data.given_lr import GivenLR, only_hr
from rdn_fast.data.images import image_files, read_image
from rdn_fast.data.pairs import Pair, degrade
from rdn_fast.errors import Failure, UserError
from rdn_fast.evaluation import metrics
from rdn_fast.ordered_map import ordered_map
from rdn_fast.terminal import printable


class PictureFolder(Sequence[Pair]):
    """The pairs of a folder's images in the order of their paths, read when they are indexed.

    Raises Failure where a file has changed since the folder was opened. `sizes`: height and width of the LR images.
    `lr_made_by`: where LR images come from, in words. `lr_folder`: of given LR pictures; None where they are made.
    """

    def __init__(
        self,
        folder: str | Path,
        scale: int,
        say: Callable[[str], None],
        strict: bool,
        lr: Degradation | str | Path,
    ):
        """Read every file once, and keep what can be evaluated. say, strict: as of datasets.load_pairs().

        lr: how LR images are made, or a folder of LR pictures, which may be the folder itself.
        """
        folder, self._scale, self._lr = Path(folder), scale, lr
        self._given = None if isinstance(lr, Degradation) else GivenLR(folder, lr, scale, say, strict)
        if self._given is None:
            lr.check_scale(scale)
        self.lr_made_by = (self._given or lr).in_words
        self.lr_folder = self._given and self._given.folder
        self._lr_files = self._given.files if self._given else {}
        found = image_files(folder)
        hr = only_hr(found)
        if others := len({*found} - {*hr} - {*self._lr_files.values()}):
            say(f"{folder}: its {len(hr)} files *_HR; {others} others are left out")
        files = [*self._lr_files] or hr
        self._files: list[Path] = []
        self._states: list[list[tuple[int, int] | None]] = []
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
            remedy = (
                "give LR pictures that fit, or --bicubic to make them" if self._given else "give a folder of images"
            )
            raise UserError(f"{folder}: none of its {len(files)} files is an image that can be evaluated; {remedy}")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Pair:
        file, reason = self._files[i], "was changed while it was in use"
        try:
            if (states := self._state(file)) == self._states[i]:
                return self._read(file)
            if states[0] == self._states[i][0]:
                file = self._lr_files[file]
        except ValueError as error:
            reason = f"can no longer be read ({error})"
        raise Failure(f"{file}: {reason}; restore it and start again (a training run with --resume auto)")

    def _check(self, file: Path) -> tuple[Path, list[tuple[int, int] | None], tuple[int, int] | str]:
        """Return the file, its _state(), and the size of its LR image or why it cannot be evaluated."""
        smallest, state = metrics.smallest_side(self._scale), self._state(file)
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
        name = printable(file.stem)
        if self._given is not None:
            return self._given.read(name, file)
        return degrade(name, read_image(file), self._scale, degradation=self._lr)

    def _state(self, file: Path) -> list[tuple[int, int] | None]:
        """Return the states of an HR picture, and of its LR picture where it has one."""
        return [_state(path) for path in (file, self._lr_files.get(file)) if path is not None]


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

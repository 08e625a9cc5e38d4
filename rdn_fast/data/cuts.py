"""What prepare cuts out of a picture: all of it, the reference's five crops, or overlapping tiles, in several sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from rdn_fast.data.degradation import PLAIN, Degradation
from rdn_fast.data.pairs import Pair, degrade, five_crops, five_crops_of_pair
from rdn_fast.errors import UserError

_SMALLEST_TILE = 16  # LR pixels; fewer are hardly meant, and a large picture would give a million


@dataclass(frozen=True)
class Cuts:
    """How pairs are made of a picture. Raises UserError, which names prepare's flags, for values that mean nothing.

    whole: one pair, for evaluation. tile: instead of five crops, overlapping tiles of that edge in LR pixels.
    sizes: what HR images are multiplied by, at most 1, each by Pillow's LANCZOS, which is antialiased; largest first.
    smallest: shortest edge in LR pixels of an image that is cut into tiles.
    compat, degradation: as of pairs.degrade().
    """

    scale: int
    whole: bool = False
    tile: int | None = None
    sizes: tuple[float, ...] = (1.0,)
    smallest: int = 1
    compat: bool = False
    degradation: Degradation = PLAIN

    def __post_init__(self):
        given = {"--tiles": self.tile, "--sizes": None if self.sizes == (1.0,) else _words(self.sizes)}
        for flag, value in given.items():
            if self.whole and value is not None:
                raise UserError(f"{flag} {value}: not with --eval, which takes whole images; leave one of the two out")
        if self.tile is not None and self.tile < _SMALLEST_TILE:
            raise UserError(f"--tiles {self.tile}: is an edge in LR pixels; give at least {_SMALLEST_TILE}, as 96")
        if not all(0 < size <= 1 for size in self.sizes) or len({*self.sizes}) != len(self.sizes):
            raise UserError(f"--sizes {_words(self.sizes)}: give each size once, above 0 and at most 1, as 1 0.8 0.6")
        self.degradation.check_scale(self.scale)

    def of_image(self, name: str, image: np.ndarray) -> list[Pair]:
        """Return the pairs of image, uint8 [H, W, 3], in every size that is large enough.

        Raises ValueError when none is.
        """
        pairs: list[Pair] = []
        for size in sorted(self.sizes, reverse=True):
            reduced = _reduced(image, size)
            label = name if self.tile is None and self.sizes == (1.0,) else f"{name} {_size_of(reduced)}"
            try:
                pairs += self._of_size(label, reduced)
            except ValueError:
                if not pairs:
                    raise
                break  # those that follow are smaller
        return pairs

    def of_given(self, pair: Pair) -> list[Pair]:
        """Return the pairs of a picture whose LR image is given: in one size. Raises ValueError as of_image()."""
        if self.whole:
            return [pair]
        return five_crops_of_pair(pair) if self.tile is None else self._tiles(pair)

    def _of_size(self, name: str, image: np.ndarray) -> list[Pair]:
        how = self.scale, self.compat, self.degradation
        if self.tile is not None:
            return self._tiles(degrade(name, image, *how))  # before cutting: bicubic must not see borders inside
        if self.whole:
            return [degrade(name, image, *how)]
        return [degrade(f"{name} (crop {k})", crop, *how) for k, crop in enumerate(five_crops(image))]

    def _tiles(self, pair: Pair) -> list[Pair]:
        """Cut both images into tiles that overlap by a third. An image smaller than a tile is one tile."""
        (height, width), edge = pair.lr.shape[:2], self.tile
        if min(height, width) < self.smallest:
            raise ValueError(f"smaller than a patch of {self.smallest} LR pixels")
        tiles = []
        for top in _starts(height, edge):
            for left in _starts(width, edge):
                lr, hr = (
                    image[f * top : f * (top + edge), f * left : f * (left + edge)]
                    for image, f in ((pair.lr, 1), (pair.hr, self.scale))
                )
                tiles.append(Pair(f"{pair.name} {top},{left}", lr, hr))
        return tiles


def _starts(length: int, edge: int) -> list[int]:
    """Return where tiles begin along an image's edge. The last one ends with it."""
    return sorted({*range(0, length - edge + 1, edge * 2 // 3), max(0, length - edge)})


def _reduced(image: np.ndarray, size: float) -> np.ndarray:
    if size == 1:
        return image
    height, width = (max(1, round(edge * size)) for edge in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def _size_of(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _words(sizes: tuple[float, ...]) -> str:
    return " ".join(f"{size:g}" for size in sizes)

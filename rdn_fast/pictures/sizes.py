"""The size that a result gets, and how often the model is needed for it: arithmetic, without pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

from rdn_fast.errors import UserError

MAX_PIXELS = 178_956_970  # of a picture that enters the model: Pillow's own limit


class Steps(NamedTuple):
    """How a picture gets its size: through the model `passes` times, then resampled where that is not `size`.

    source, size: width and height of the picture and of the result. scale: the model's. stretched: a width and a height
    were given that change the picture's shape.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    scale: int
    passes: int
    stretched: bool = False

    @property
    def is_resampled(self) -> bool:
        factor = self.scale**self.passes
        return self.size != (factor * self.source[0], factor * self.source[1])

    def describe(self, always: bool = False) -> str | None:
        """Return the size and how it is made, in words; if not always, None where the model runs once and gives it."""
        if self.passes == 1 and not self.is_resampled and not always:
            return None
        horizontal, vertical = (edge / old for edge, old in zip(self.size, self.source, strict=True))
        factor = f"x{horizontal if self.source[0] >= self.source[1] else vertical:.4g}"
        if self.stretched:
            factor = f"stretched x{horizontal:.4g} by x{vertical:.4g}"
        width, height = self.size
        return f"{width}x{height} pixels ({factor}): {self._road()}"

    def _road(self) -> str:
        if not self.passes:
            return "resampled without the model" if self.is_resampled else "its own size, not through the model"
        times = {1: "once", 2: "twice"}.get(self.passes, f"{self.passes} times")
        return f"through the x{self.scale} model {times}" + (", then resampled" if self.is_resampled else "")

    def check(self, max_pixels: int, limit: str) -> None:
        """Raise ValueError when more than max_pixels (0: no limit) would enter the model in a second or later pass.

        With pictures of at most max_pixels a result has at most scale**2 * max_pixels. limit: what the limit is called.
        """
        factor = self.scale ** (self.passes - 1) if self.passes > 1 else 0
        width, height = (factor * edge for edge in self.source)
        if max_pixels and width * height > max_pixels:
            what = f"{width}x{height} pixels before pass {self.passes} of the x{self.scale} model"
            raise ValueError(f"{what} are more than {limit} {max_pixels}; give a smaller size")


@dataclass(frozen=True)
class OutputSize:
    """The wanted size of results: a factor, or a width, a height, both or the longest edge in pixels; none: the scale.

    What is not given follows from the picture's shape. Width and height together are exactly the result's.
    """

    outscale: float | None = None
    width: int | None = None
    height: int | None = None
    longest: int | None = None

    def check(self, dashes: str = "") -> None:
        """Raise UserError for values that are no sizes or exclude each other. dashes: before the names, in the text."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            number = isinstance(value, Real if name == "outscale" else Integral) and not isinstance(value, bool)
            if not (number and 0 < value < 2**31):
                what = "a factor above 0" if name == "outscale" else "a number of pixels, 1 or more"
                raise UserError(f"{dashes}{name} {value}: give {what}")
        names = [dashes + name for name in given if name != "height" or self.width is None]
        if len(names) > 1:
            raise UserError(f"{' and '.join(names)} each say the result's size; give one of them")

    def steps(self, width: int, height: int, scale: int) -> Steps:
        """Return how a picture of this size, through a model of this scale, gets the wanted size.

        The model runs as often as neither edge has to grow afterwards, and not at all where none grows.
        """
        source = width, height
        if self == OutputSize():
            return Steps(source, (scale * width, scale * height), scale, 1)
        if self.width and self.height:
            size = int(self.width), int(self.height)
        else:
            size = tuple(max(1, round(self._factor(width, height) * edge)) for edge in source)
        passes = 0
        while any(scale**passes * old < new for old, new in zip(source, size, strict=True)):
            passes += 1
        # Both edges rounded from one factor differ by less than this.
        stretched = abs(size[0] / width - size[1] / height) > 0.5 / width + 0.5 / height
        return Steps(source, size, scale, passes, bool(self.width and self.height) and stretched)

    def possible_scales(self, scales: Iterable[int]) -> list[int]:
        """Return those of the scales that best_scale() may return, which is one where no pixels are asked for."""
        in_pixels = self.width or self.height or self.longest
        return sorted(scales) if in_pixels else [self.best_scale(1, 1, scales)]

    def best_scale(self, width: int, height: int, scales: Iterable[int]) -> int:
        """Return the model's scale for a picture of this size: of those with the fewest passes the smallest."""
        if self == OutputSize():
            return min(scales)
        factor = self._factor(width, height)
        if self.width and self.height:
            factor = max(factor, int(self.height) / height)
        return min(scales, key=lambda scale: (_passes(factor, scale), scale))

    def _factor(self, width: int, height: int) -> float:
        if self.outscale:
            return float(self.outscale)
        if self.longest:
            return int(self.longest) / max(width, height)
        return int(self.width) / width if self.width else int(self.height) / height


def _passes(factor: float, scale: int) -> int:
    """Return how often a model of this scale has to enlarge a picture until it is `factor` times as large or larger."""
    passes = 0
    while scale**passes < factor:
        passes += 1
    return passes

"""The georeference of a GeoTIFF: the tags that it consists of, and their values for a larger picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_PIXEL_SCALE, _TIE_POINTS, _TRANSFORMATION = 33550, 33922, 34264
_KEYS, _DOUBLES, _TEXTS = 34735, 34736, 34737  # the coordinate system
TAGS = {_PIXEL_SCALE, _TIE_POINTS, _TRANSFORMATION, _KEYS, _DOUBLES, _TEXTS}
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2  # a key, and its value where (0, 0) is the first pixel's centre, not its corner


def enlarged(tags: Mapping[int, tuple | str], x: float, y: float) -> dict[int, tuple | str]:
    """Return the tags for the same area in x times as many columns and y times as many rows (OGC 19-008, GeoTIFF 1.1).

    A position i, counted from the corner of the first pixel, becomes x * i. Where positions are counted from the
    centre of the first pixel, i becomes x * (i + 0.5) - 0.5. Raises TypeError or ValueError for values of another kind
    or number than GeoTIFF's.
    """
    keys = np.reshape(tags.get(_KEYS, ())[4:], (-1, 4)).tolist()
    shift = 0.5 if [_RASTER_TYPE, 0, 1, _PIXEL_IS_POINT] in keys else 0.0
    new = dict(tags)
    if _PIXEL_SCALE in tags:
        width, height, depth = tags[_PIXEL_SCALE]
        new[_PIXEL_SCALE] = (width / x, height / y, depth)
    if _TIE_POINTS in tags:  # each: column, row, level, and X, Y, Z in the model's space
        points = np.reshape(tags[_TIE_POINTS], (-1, 6)).astype(np.float64)
        points[:, :2] = (points[:, :2] + shift) * (x, y) - shift
        new[_TIE_POINTS] = tuple(points.ravel().tolist())
    if _TRANSFORMATION in tags:  # (column, row, level, 1) -> (X, Y, Z, 1)
        to_small = np.array(
            [[1 / x, 0, 0, shift / x - shift], [0, 1 / y, 0, shift / y - shift], [0, 0, 1, 0], [0, 0, 0, 1]]
        )
        new[_TRANSFORMATION] = tuple((np.reshape(tags[_TRANSFORMATION], (4, 4)) @ to_small).ravel().tolist())
    return new

"""Which training pictures an evaluation set shows: collections of photographs overlap (prepare --unseen)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rdn_fast.data.images import image_files, read_image
from rdn_fast.errors import UserError, naming_flag
from rdn_fast.ordered_map import ordered_map
from rdn_fast.terminal import Bar

_THUMBNAIL = 24  # pixels
_ALIKE = 0.96  # correlation of two thumbnails; different images that resemble each other had up to 0.94


def alike(
    paths: Sequence[Path], sets: Iterable[str | Path], say: Callable[[str], None], strict: bool = False
) -> dict[Path, Path]:
    """Return {image: the one of `sets` that it shows as a whole}, in any size, also mirrored. Crops are not found.

    sets: folders of images, with all folders inside. Files there that are no images are named by say(), or with
    `strict` raise UserError, as does a folder without any image. Images of `paths` that cannot be read are like none.
    """
    theirs, shown = [], []
    for folder in sets:
        with naming_flag("--unseen"):
            files = image_files(folder, recursive=True)
        before = len(shown)
        for path, thumbnail in zip(files, ordered_map(_thumbnail, files, workers=2, ahead=4), strict=True):
            if isinstance(thumbnail, str):
                if strict:
                    raise UserError(f"--unseen {path}: {thumbnail}; remove or repair it, or leave out --strict")
                say(f"--unseen: passed over {path}: {thumbnail}")
                continue
            theirs += [thumbnail, thumbnail[:, ::-1]]
            shown.append(path)
        if len(shown) == before:
            raise UserError(f"--unseen {folder}: none of its files is an image that can be read; give another")
    if not shown:
        return {}
    stack, found = np.stack(theirs), {}
    with Bar("looked at", len(paths)) as bar:
        for path, ours in zip(paths, ordered_map(_thumbnail, paths, workers=2, ahead=4), strict=True):
            if not isinstance(ours, str):
                correlations = (stack * ours).mean(axis=(1, 2))
                if correlations.max() > _ALIKE:
                    found[path] = shown[int(correlations.argmax()) // 2]
            bar.advance()
    return found


def _thumbnail(path: Path) -> np.ndarray | str:
    """Return the image in grey, with mean 0 and variance 1, or why it cannot be read.

    The mean of the product of two is their correlation.
    """
    try:
        image = Image.fromarray(read_image(path)).convert("L")
    except ValueError as error:
        return str(error)
    grey = np.asarray(image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), np.float64)
    return (grey - grey.mean()) / max(grey.std(), 1e-9)

"""A stand-in for Upscaler in the tests of `rdn-fast upscale`, and what they share."""

from pathlib import Path

PATIENCE = 300  # seconds to wait for an event before a test fails


class Nearest:
    """Takes the place of pictures.tiled.Upscaler: repeats pixels."""

    def __init__(self, model, *settings, say=print):
        self.scale = model.config.scale

    def __call__(self, image):
        return image.repeat(self.scale, axis=0).repeat(self.scale, axis=1)


def files(folder) -> list[str]:
    """Return the paths of all files below a folder, relative to it, sorted."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())

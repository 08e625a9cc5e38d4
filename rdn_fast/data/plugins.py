"""Pillow's plug-ins for HEIC and JPEG XL: found where they are installed, and named where one is missing."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from PIL import Image


class _Plugin(NamedTuple):
    format: str  # as Pillow names it
    name: str
    module: str
    package: str  # on PyPI
    extensions: tuple[str, ...]
    offset: int  # in a file, of one of the signatures
    signatures: tuple[bytes, ...]


_HEIC = b"ftypheic", b"ftypheix", b"ftyphevc", b"ftyphevx", b"ftypmif1", b"ftypmsf1"
_JXL = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_PLUGINS = (
    _Plugin("HEIF", "HEIC", "pillow_heif", "pillow-heif", (".heic", ".heif", ".hif"), 4, _HEIC),
    _Plugin("JXL", "JPEG XL", "pillow_jxl", "pillow-jxl-plugin", (".jxl",), 0, _JXL),
)


@cache
def missing_plugins() -> tuple[_Plugin, ...]:
    """Register the plug-ins that are installed, at the first call; return the others."""
    Image.init()
    missing = []
    for plugin in _PLUGINS:
        try:
            module = import_module(plugin.module)
        except ImportError:
            missing.append(plugin)
        else:
            if plugin.format == "HEIF":  # the other one registers itself
                module.register_heif_opener()
    return tuple(missing)


def remedy_for_format(format: str) -> str | None:
    """Return which plug-in to install for one of Pillow's formats, in words; None where none is missing."""
    return next((_words(plugin) for plugin in missing_plugins() if plugin.format == format), None)


def remedy_for_extension(extension: str) -> str | None:
    """Return the same for files with this extension, in lower case and with the dot."""
    return next((_words(plugin) for plugin in missing_plugins() if extension in plugin.extensions), None)


def remedy_for_file(path: str | Path) -> str | None:
    """Return the same for a file by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(16)
    of_head = (plugin for plugin in missing_plugins() if head[plugin.offset :].startswith(plugin.signatures))
    return next(map(_words, of_head), None)


def _words(plugin: _Plugin) -> str:
    return f"{plugin.name} needs a plug-in of Pillow: pip install {plugin.package}"

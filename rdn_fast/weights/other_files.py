"""Tell what a file is that people take for weights, and what to do about it."""

from __future__ import annotations

import zipfile
from pathlib import Path

_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for; run `git lfs pull` in its clone"),
    (b"4\n1\n3\nV 1\n", "a Torch7 file of text; save it anew with torch.save(file, model), without 'ascii'"),
    (b"GGUF", "a GGUF file of a language model; give weights of an RDN"),
    (b"\x89PNG", "a picture; give weights"),
    (b"\xff\xd8\xff", "a picture; give weights"),
    (b"\x1f\x8b", "compressed by gzip; unpack it, and give the weights in it"),
    (b"BZh", "compressed by bzip2; unpack it, and give the weights in it"),
    (b"\xfd7zXZ\0", "compressed by xz; unpack it, and give the weights in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it, and give the weights in it"),
    (b"Rar!", "a RAR archive; unpack it, and give the weights in it"),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")
_PROGRAM = "give the weights that it was made of, as its maker's training saved them"


def describe(path: Path, head: bytes) -> str | None:
    """Return what a file is and the remedy, or None for a file that may be weights.

    head: its first 4 KiB. Files of other kinds are known by their first bytes, and zip archives by their entries.
    """
    if not head:
        return "empty; download or copy it again"
    for start, words in _STARTS:
        if head.startswith(start):
            return words
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:20].lower().startswith(_PAGES):
        return "a web page, not the file behind it; open the link in a browser and download the file itself"
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite model; {_PROGRAM}"
    if is_onnx(head):
        return f"an ONNX model, which only upscale and eval take; {_PROGRAM}"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _archive([name.rpartition("/")[2] for name in archive.namelist()])
    return None


def _archive(names: list[str]) -> str | None:
    """Return the same of a zip archive with entries of these names, folders left out."""
    if "constants.pkl" in names:
        return "a TorchScript program; where it comes from, save model.state_dict()"
    if "data.pkl" in names:
        return None
    if "model.weights.h5" in names:
        return "an archive of Keras 3; where it comes from, save the weights as .h5 with tf_keras"
    if any(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays; save them as a state dict of torch"
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return f"a program of torch.export; {_PROGRAM}"
    return "a zip archive; unpack it, and give the weights in it"


def is_onnx(head: bytes) -> bool:
    """Return whether a file begins like a protobuf message ModelProto: a small version number, then a text field."""
    # Field 1, varint: ir_version. Fields 2 to 6: texts and a number about the producer; 7: the graph; 8: opsets.
    return (
        len(head) > 2
        and head[0] == 0x08
        and 0 < head[1] < 30
        and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x3a", b"\x42")
    )

"""A folder of more than 400 odd files through the real commands: the same pixels everywhere, nothing lost unsaid."""

import json
import os
import re
from pathlib import Path

import h5py
import numpy as np
import odd_files
import pytest
import runs
import torch

from rdn_fast.config import ModelConfig
from rdn_fast.data.image_formats import picture_extensions
from rdn_fast.model import RDN
from rdn_fast.pictures.picture import read_picture
from rdn_fast.terminal import printable

HIDDEN, FOLDERS = (".DS_Store", "._photo.jpg", ".hidden.png"), ("a folder.png", "folder")
PATIENCE = 300  # seconds; the commands take some 20 on a quiet machine


def nearest() -> dict[str, torch.Tensor]:
    """Weights whose result is the picture with every pixel four times: it shows what the model was given."""
    model = RDN(ModelConfig(2, 6, 4, 2, 2))
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    for channel in range(3):
        state["sfe1.weight"][channel, channel, 1, 1] = 1
        state["upscale.0.weight"][4 * channel : 4 * channel + 4, channel, 1, 1] = 1
        state["output.weight"][channel, channel, 1, 1] = 1
    return state


class Seen:
    """What the three commands made of the folder, and what they said."""

    def __init__(self, folder: Path, work: Path):
        torch.save(nearest(), work / "nearest.pth")
        flags = {"timeout": PATIENCE, "cwd": work}
        of_model = ("-w", "nearest.pth", "--device", "cpu")
        self.upscale = runs.cli("upscale", "-i", folder, "-o", "out", "--ext", "png", *of_model, **flags)
        self.prepare = runs.cli("prepare", "--images-dir", folder, "--output-path", "hr.h5", "--eval", **flags)
        sets = ("--eval-file", folder, "hr.h5", "--json", "r.json", "--save-images", "measured")
        self.eval = runs.cli("eval", *sets, *of_model, **flags)
        self.work = work

    def said_of(self, command: str, path: Path) -> str | None:
        """The reason that the command gives for not using a file."""
        start = re.escape(printable(str(path)))
        found = re.findall(rf"^(?:skipped|failed) {start}: (.+)$", getattr(self, command).stdout, re.MULTILINE)
        assert len(found) < 2, path
        return found[0] if found else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("odd")


@pytest.fixture(scope="module")
def files(folder):
    """What each file of the folder is. Hidden files, folders, links and a pipe lie beside them."""
    files = odd_files.write(folder)
    for name in HIDDEN:
        (folder / name).write_bytes(b"hidden")
    for name in FOLDERS:
        (folder / name).mkdir()
    picture = next(path for path, odd in files.items() if odd.pixels is not None)
    links = {
        "link.png": picture,
        "link to nothing.png": "nothing.png",
        "link to a folder.png": "folder",
        "loop.png": "loop.png",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    files[folder / "link.png"] = files[picture]
    for name, reason in {"link to nothing.png": "nothing", "loop.png": "symbolic links", "pipe.png": "pipe"}.items():
        files[folder / name] = odd_files.Odd(name, b"", None, reason)
    return files


@pytest.fixture(scope="module")
def seen(folder, files, tmp_path_factory):
    return Seen(folder, tmp_path_factory.mktemp("work"))


def test_there_are_more_than_400(files):
    assert len(files) > 400
    assert sum(odd.pixels is not None for odd in files.values()) > 200


@pytest.mark.slow
def test_every_command_ends_as_it_says(seen):
    for command, code in (("upscale", 1), ("prepare", 0), ("eval", 0)):
        ended = getattr(seen, command)
        assert (ended.returncode, ended.stderr) == (code, ""), command


@pytest.mark.slow
def test_every_file_is_used_or_named_with_its_reason(seen, files):
    for path, odd in files.items():
        reasons = [seen.said_of(command, path) for command in ("prepare", "eval")]
        if odd.refused is None:
            assert reasons == [None, None], path
        elif odd.refused:
            assert all(reason and re.search(odd.refused, reason) for reason in reasons), (path, reasons)
        if is_tried(path):
            reason = seen.said_of("upscale", path)
            assert (reason is None) == (reasons[0] is None) or "too long" in reason, (path, reason, reasons[0])
        if all(reasons):
            assert reasons[0] == reasons[1] or "need 15 on each side" in reasons[1]


def is_tried(path: Path) -> bool:
    """Whether upscale takes the file for a picture, by its name."""
    return path.suffix.lower() in picture_extensions()


@pytest.mark.slow
def test_what_upscale_does_not_try_is_counted_by_kind(seen, files, folder):
    (line,) = re.findall(rf"^left out of {re.escape(str(folder))}: (.*); a file", seen.upscale.stdout, re.MULTILINE)
    counted = sum(int(number) for number in re.findall(r"(?:^|, )(\d+) ", line))
    assert counted == sum(not is_tried(path) for path in files) + len(FOLDERS) + 1  # a link to one
    for command in ("prepare", "eval"):
        assert f"{folder}: {len(FOLDERS) + 1} folders in it are passed over" in getattr(seen, command).stdout


@pytest.mark.slow
def test_all_commands_see_the_same_pixels(seen, files):
    used = [path for path in sorted(files) if seen.said_of("prepare", path) is None]
    shown = exact = 0
    with h5py.File(seen.work / "hr.h5") as file:
        assert len(file["hr"]) == len(used)
        for number, path in enumerate(used):
            hr, expected = file[f"hr/{number}"][:], files[path].pixels
            if expected is not None:
                height, width = (edge // 2 * 2 for edge in expected.shape[:2])
                np.testing.assert_array_equal(hr, expected[:height, :width], str(path))
                exact += 1
            result = seen.work / "out" / os.fsdecode(os.fsencode(path.stem) + b"_out.png")
            if is_tried(path) and seen.said_of("upscale", path) is None:
                given, visible = model_input(result)
                given, visible = given[: hr.shape[0], : hr.shape[1]], visible[: hr.shape[0], : hr.shape[1]]
                np.testing.assert_array_equal(given[visible], hr[visible], str(path))
                shown += 1
    assert exact > 200
    assert shown > 300


def model_input(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of a result in 8 bits, uint8 [H, W, 3], and where they are visible, bool [H, W]."""
    pixels = read_picture(path).pixels
    np.testing.assert_array_equal(pixels, pixels[::2, ::2].repeat(2, 0).repeat(2, 1), str(path))
    pixels = pixels[::2, ::2]
    with_alpha = pixels.shape[2] in (2, 4)
    visible = pixels[..., -1] > 0 if with_alpha else np.ones(pixels.shape[:2], bool)
    colours = pixels[..., :-1] if with_alpha else pixels
    return np.broadcast_to(odd_files.three(colours), (*colours.shape[:2], 3)), visible


@pytest.mark.slow
def test_eval_measures_the_pixels_that_prepare_stores(seen):
    of_folder, of_h5 = json.loads((seen.work / "r.json").read_text())["sets"]
    assert of_folder["notes"]
    assert len(of_folder["images"]) == len(of_h5["images"]) > 300
    for here, there in zip(of_folder["images"], of_h5["images"], strict=True):
        assert here == there
    folders = sorted(seen.work.glob("measured/*"))
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]
    for name in names[0]:  # what the model made of LR
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()

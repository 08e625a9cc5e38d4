"""Checkpoints are written atomically; resuming goes back from damaged ones; loading runs no code."""

import pickle

import pytest
import torch

from rdn_fast import files
from rdn_fast.errors import Failure, UserError
from rdn_fast.training import checkpoint
from rdn_fast.weights.load import load_tensors


def save(outputs, step):
    path = checkpoint.checkpoint_path(outputs, step)
    path.parent.mkdir(exist_ok=True)
    state = dict.fromkeys(checkpoint._KEYS) | {"model": {"w": torch.full((1000,), float(step))}, "step": step}
    files.atomic_write(path, lambda file: torch.save(state, file))
    return path


def flip_bit(path):
    """Flip a bit in the middle of the first tensor's data."""
    content = bytearray(path.read_bytes())
    at = content.index(torch.full((4,), float(torch.load(path)["step"])).numpy().tobytes()) + 1000
    content[at] ^= 0x40
    path.write_bytes(content)


def listed_steps(outputs):
    return [torch.load(path)["step"] for path in checkpoint.list_checkpoints(outputs / "checkpoints")]


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-700]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped bit": flip_bit,
    "text": lambda path: path.write_text("not a checkpoint"),
    "other content": lambda path: torch.save({"a": 1}, path),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_auto_goes_back_from_a_damaged_checkpoint_and_says_so(tmp_path, kind):
    save(tmp_path, 9)
    newest = save(tmp_path, 10)
    DAMAGE[kind](newest)
    said = []
    state = checkpoint.load_checkpoint("auto", tmp_path, said.append)
    assert state["step"] == 9
    assert len(said) == 1
    assert str(newest) in said[0]
    assert "going back" in said[0]
    readable = newest.with_name("step_00000009.pt")
    assert checkpoint.list_checkpoints(tmp_path / "checkpoints") == [readable]  # the damaged one is renamed


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    for step in (1, 2):
        save(tmp_path, step).write_bytes(b"x")
    with pytest.raises(UserError, match="no checkpoint there can be read"):
        checkpoint.load_checkpoint("auto", tmp_path, lambda _: None)


def test_auto_without_checkpoints_starts_anew(tmp_path):
    said = []
    assert checkpoint.load_checkpoint("auto", tmp_path, said.append) is None
    assert "starting anew" in said[0]


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path):
    for step in (99_999_999, 123_456_789, 5):
        save(tmp_path, step)
    for name in ("step_mine.pt", "step_00000007-backup.pt"):  # the user's own
        (tmp_path / "checkpoints" / name).write_text("")
    assert listed_steps(tmp_path) == [123_456_789, 99_999_999, 5]


def test_checkpoint_by_its_path(tmp_path):
    path = save(tmp_path, 7)
    assert checkpoint.load_checkpoint(str(path), tmp_path, print)["step"] == 7
    with pytest.raises(UserError, match="no such file"):
        checkpoint.load_checkpoint(str(tmp_path / "none.pt"), tmp_path, print)


def test_failed_atomic_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def broken(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.atomic_write(path, broken)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_result_that_cannot_be_written_is_a_user_error(tmp_path):
    kind = files.Kind("a report", lambda head: head.startswith(b"{"))
    for content in (b"{", b"{whole}"):
        files.write_result(tmp_path / "a.bin", content, "--json a.bin", kind)
        assert (tmp_path / "a.bin").read_bytes() == content
    with pytest.raises(UserError, match=r"^--json a\.bin: cannot be written \(No such file or directory\); "):
        files.write_result(tmp_path / "none" / "a.bin", b"", "--json a.bin", kind)


def test_writer_keeps_the_newest_two_and_reports_errors(tmp_path):
    writer = checkpoint.CheckpointWriter()
    (tmp_path / "checkpoints").mkdir()
    for step in (1, 2, 3, 10):
        writer.put(checkpoint.checkpoint_path(tmp_path, step), {"step": step}, prune=True)
    writer.close()
    assert listed_steps(tmp_path) == [10, 3]

    writer = checkpoint.CheckpointWriter()
    writer.put(tmp_path / "no folder" / "x.pt", {})
    with pytest.raises(Failure, match="no folder"):
        writer.close()


def test_host_copy_is_contiguous_and_independent():
    source = {"a": [torch.arange(6.0).reshape(1, 2, 3, 1).contiguous(memory_format=torch.channels_last)], "b": 3}
    copy = checkpoint.host_copy(source)
    source["a"][0].zero_()
    assert copy["b"] == 3
    assert copy["a"][0].flatten().tolist() == list(range(6))
    assert copy["a"][0].is_contiguous()


def test_weights_with_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "created"), "w"))

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(UserError, match=r"evil\.pth"):
        load_tensors(path)
    torch.save({"w": Evil()}, path)
    with pytest.raises(UserError, match=r"evil\.pth"):
        load_tensors(path)
    assert not (tmp_path / "created").exists()

"""Checkpoints that hold more than tensors: objects of other libraries, and whole modules. Nothing of them is run."""

import datetime
import decimal
import enum
import pathlib
import pickle
import sys
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from unittest import mock

import numpy as np
import other_projects as others
import pytest
import torch
from torch import nn
from weight_files import assert_equal, saved, torch_saved

from bench.parity import FLOAT64, SLACK, relative_error
from rdn_fast.errors import UserError
from rdn_fast.weights import pickled
from rdn_fast.weights.convert import load_model, read_weights

OLD = {"_use_new_zipfile_serialization": False}
FORMATS = {
    "zip": {},
    "old": OLD,
    "zip, protocol 4": {"pickle_protocol": 4},
    "old, protocol 4": OLD | {"pickle_protocol": 4},
}


class _HistoryBuffer:
    """What mmengine keeps of each logged number."""

    def __init__(self):
        self._history = np.array([0.5, 0.25])
        self._ways = {"mean": deque([1, 2], maxlen=5)}


class _Config(dict):
    """A dict with attributes, as configurations of several libraries are."""

    def __init__(self, **values):
        super().__init__(values)
        self.frozen = True


class _Steps(list):
    pass


class _Mode(enum.Enum):
    TRAIN = "train"


def _made_by(library: str, *classes):
    """Return a context in which the classes, without their underscore, belong to a module of this name."""
    module = types.ModuleType(library)
    for cls in classes:
        cls.__module__, cls.__qualname__ = library, cls.__name__.removeprefix("_")
        setattr(module, cls.__qualname__, cls)
    names = library.split(".")
    parents = {".".join(names[:i]): types.ModuleType(names[i - 1]) for i in range(1, len(names))}
    return mock.patch.dict(sys.modules, parents | {library: module})


OBJECTS = {
    "NumPy scalars": lambda: {"best": np.float64(31.5), "epoch": np.int32(7)},
    "NumPy arrays": lambda: {"mean": np.zeros(3), "names": np.array(["a", "b"])},
    "paths": lambda: {"file": pathlib.PurePosixPath("/data/x.h5"), "folder": pathlib.Path("outputs")},
    "times": lambda: {
        "at": datetime.datetime(2024, 5, 6, tzinfo=datetime.timezone(datetime.timedelta(0))),
        "took": datetime.timedelta(3),
    },
    "values": lambda: {"id": uuid.uuid4(), "rate": decimal.Decimal("1e-4"), "complex": 1 + 2j, "slice": slice(3)},
    "collections": lambda: {"a": defaultdict(list, {"b": [1]}), "c": Counter("aab"), "d": deque([1]), "e": {1, 2}},
    "mmengine": lambda: {"message_hub": {"log_scalars": OrderedDict(loss=_HistoryBuffer())}},
    "dicts and lists of a kind": lambda: {"hyper_parameters": _Config(lr=1e-4, steps=_Steps([1, 2]))},
    "enumerations": lambda: {"mode": _Mode.TRAIN},
    "types": lambda: {"dtype": torch.float16, "size": torch.Size([2]), "device": torch.device("cpu"), "kind": dict},
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", OBJECTS)
def test_weights_beside_other_objects_are_read_and_the_objects_are_not_made(tmp_path, kind, form):
    state = others.Reference(2).state_dict()
    with _made_by("mmengine.logging.history_buffer", _HistoryBuffer, _Config, _Steps, _Mode):
        path = saved(
            tmp_path / "w.pth", {**OBJECTS[kind](), "state_dict": others.wrapped(state, "module.")}, **FORMATS[form]
        )
    with mock.patch.dict(sys.modules, {"mmengine": None}):  # importing it would fail
        weights = read_weights(path)
    assert_equal(weights.state, state)
    assert weights.layout == "reference (state_dict)"


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_of_every_kind_are_the_ones_that_torch_reads(tmp_path, form):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "plain": base,
        "a view": base[1, :, 1:3],
        "transposed": base.transpose(0, 2),
        "a parameter": nn.Parameter(torch.rand(3)),
        "empty": torch.zeros(0, 3),
        "a number": torch.tensor(3.5),
        **{str(dtype): torch.ones(5).to(dtype) for dtype in pickled._DTYPES.values()},
    }
    for key, value in pickled.read(saved(tmp_path / "w.pth", tensors, **FORMATS[form])).items():
        assert type(value) is torch.Tensor
        assert value.dtype == tensors[key].dtype
        assert value.stride() == tensors[key].stride() or not value.numel()
        assert torch.equal(value, tensors[key]), key


def test_tensors_of_an_npu(tmp_path):
    state = others.Reference(2).state_dict()
    others.save_from_npu(tmp_path / "w.pth", state)
    assert_equal(pickled.read(tmp_path / "w.pth")["model"], others.wrapped(state, "module."))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("build", [others.Reference, others.Edsr, others.Lornatang, others.Lizhengwei])
def test_a_whole_module_is_read_as_its_state_dict(tmp_path, build, form):
    theirs = build(3)
    path = saved(tmp_path / "model_obj.pt", {"epoch": 3, "model": nn.DataParallel(theirs)}, **FORMATS[form])
    ours, x = load_model(path, "cpu"), torch.rand(1, 3, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.double()(x * theirs.top) / theirs.top
        assert relative_error(ours.double()(x), expected) <= (FLOAT64 if theirs.top == 1 else SLACK[torch.float32])


# ---- what is refused ----


class _Runs:
    """Asks for a call when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_what_weights_never_need_is_refused_by_name(tmp_path):
    for function, name in ((eval, "builtins.eval"), (exec, "builtins.exec"), (__import__, "builtins.__import__")):
        path = saved(tmp_path / "w.pth", {"x": _Runs(function, "1"), "model": others.Reference(2).state_dict()})
        with pytest.raises(
            UserError, match=rf"refused, it asks for (__builtin__|builtins)\.{name.split('.')[1]}, which"
        ):
            read_weights(path)


def test_a_function_of_another_library_is_not_called(tmp_path):
    called = []

    def load(*arguments):
        called.append(arguments)

    module = types.ModuleType("library")
    load.__module__, load.__qualname__, module.load = "library", "load", load
    state = others.Reference(2).state_dict()
    with mock.patch.dict(sys.modules, {"library": module}):
        path = saved(tmp_path / "w.pth", {"x": _Runs(load, "rm"), "model": state})
        assert_equal(read_weights(path).state, state)
    assert called == []


class _SetsState(nn.Parameter):
    """Asks for a state of 10^12 numbers to be set on its tensor when it is unpickled."""

    def __reduce_ex__(self, protocol):
        function, arguments = torch.zeros(4).__reduce_ex__(protocol)
        return function, arguments, (torch.zeros(1), 0, (10**6, 10**6), (10**6, 1))


def test_a_file_sets_no_state_of_a_tensor(tmp_path):
    path = saved(tmp_path / "w.pth", {"x": _SetsState(torch.zeros(4)), "lr": np.float64(1)})
    with pytest.raises(pickle.UnpicklingError, match="a state for a tensor"):
        pickled.read(path)


def test_tensors_reach_no_further_than_their_bytes(tmp_path):
    storage = torch.zeros(4)
    for arguments in ((3, (2,), (1,)), (-1, (2,), (1,)), (0, (5,), (1,)), (0, (2, 2), (4, 1)), (3, (2,), (-1,))):
        with pytest.raises(pickle.UnpicklingError, match="outside its storage"):
            pickled._tensor(storage, *arguments)
    content = torch_saved({"x": np.float64(1), "model": others.Reference(2).state_dict()}, **OLD)
    shape = b"K\x06K\x03K\x03K\x03t"
    assert shape in content
    (tmp_path / "w.pth").write_bytes(content.replace(shape, b"J\xff\xff\xff\x7fK\x03K\x03K\x03t", 1))
    with pytest.raises(UserError, match="damaged"):
        read_weights(tmp_path / "w.pth")


def test_one_changed_bit_of_a_zip_is_found(tmp_path):
    state = others.Reference(2).state_dict()
    content = torch_saved({"x": np.float64(1), "model": state})
    for inside in (b"sfe2.weight", state["gff.0.weight"].numpy().tobytes()):
        at = content.index(inside)
        (tmp_path / "w.pth").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(UserError):
            read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("form", ["zip", "old"])
def test_cut_off_and_compressed_files_are_damaged(tmp_path, form):
    path = tmp_path / "w.pth"
    content = torch_saved({"x": np.float64(1), "model": others.Reference(2).state_dict()}, **FORMATS[form])
    for length in (len(content) - 1, len(content) // 2, 40, 3):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged"):
            read_weights(path)

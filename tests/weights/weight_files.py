"""Write files of weights and compare state dicts, for the tests of weights."""

import io

import safetensors.torch
import torch


def saved(path, value, **options):
    """torch.save(value, path); returns the path."""
    torch.save(value, path, **options)
    return path


def assert_equal(state, expected):
    """Fail unless two state dicts have the same keys, dtypes and values, bit for bit."""
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype, key
        assert torch.equal(state[key], value), key


def as_safetensors(path, state, metadata=None):
    safetensors.torch.save_file(state, path, metadata)


def torch_saved(value, **options) -> bytes:
    """Return what torch.save writes."""
    torch.save(value, file := io.BytesIO(), **options)
    return file.getvalue()

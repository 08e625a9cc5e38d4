"""A stand-in for Ascend's build of NVIDIA's apex, with `apex.amp` only. Not run on Ascend."""

from apex import amp

__all__ = ["amp"]

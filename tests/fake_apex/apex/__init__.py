"""A stand-in for Ascend's build of NVIDIA's apex, of which it has `apex.amp` only. Nothing here was run on Ascend."""

from apex import amp

__all__ = ["amp"]

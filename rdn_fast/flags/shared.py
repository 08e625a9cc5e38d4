"""Flags that several commands have."""

from __future__ import annotations

import argparse

from rdn_fast.config import DEGRADATION_HELP

DEVICES = "auto, cpu, cuda[:i] or npu[:i]"


def add_weights(parser: argparse.ArgumentParser, or_onnx: str = "", default_scale: str = "2") -> None:
    """Add -w, -n and -s. default_scale: in words, of the model that is taken where none of them is given."""
    help_text = f"weights of any RDN{or_onnx} (default: the model of the scale that comes with rdn_fast)"
    parser.add_argument("-w", "--weights-file", metavar="WEIGHTS", help=help_text)
    name_help = "instead: a model that comes with rdn_fast, by name; `rdn-fast models` lists them"
    parser.add_argument("-n", "--model-name", metavar="NAME", help=name_help)
    scale_help = f"the model's: without -w it chooses that model, else it is checked (default: {default_scale})"
    parser.add_argument("-s", "--scale", type=int, help=scale_help)


def add_degradation(parser: argparse.ArgumentParser, of_what: str) -> None:
    """Add the two flags, None where they are not given."""
    matlab = "matlab: imresize of a uint8 image, as benchmarks were made"
    bicubic_help = f"whose bicubic makes the {of_what}; {matlab} (default: pillow)"
    parser.add_argument("--bicubic", choices=("pillow", "matlab"), help=bicubic_help)
    parser.add_argument("--degradation", metavar="KIND", help=f"{DEGRADATION_HELP} (default: bi)")

"""The flags of doctor and demo."""

from __future__ import annotations

from rdn_fast.flags.shared import DEVICES


def doctor(commands) -> None:
    parser = commands.add_parser("doctor", help="what this machine has for training, and what brings the rest")
    parser.add_argument("--device", default="auto", help=DEVICES)


def demo(commands) -> None:
    help_text = "train a small model on photographs, compare it with bicubic and draw the result"
    parser = commands.add_parser("demo", help=help_text)
    parser.add_argument("--outputs-dir", default="outputs/demo", help="where data, weights and compare.png go")
    parser.add_argument("--device", default="auto", help=DEVICES)

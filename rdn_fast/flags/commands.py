"""The parser of the whole command line."""

from __future__ import annotations

from rdn_fast import __version__
from rdn_fast.flags.files import convert, export, models, prepare
from rdn_fast.flags.machine import demo, doctor, report
from rdn_fast.flags.parser import Parser
from rdn_fast.flags.pictures import eval_, metrics, upscale
from rdn_fast.flags.training import train, tune


def make_parser() -> Parser:
    """Return the parser of the whole command line; `command` of its result is the command's name.

    It raises UserError instead of printing the usage.
    """
    description = "Train, evaluate and use Residual Dense Networks for super-resolution, fast."
    parser = Parser(prog="rdn-fast", description=description)
    parser.add_argument("--version", action="version", version=f"rdn-fast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for add in (train, tune, upscale, eval_, metrics, convert, export, models, prepare, doctor, demo, report):
        add(commands)
    return parser

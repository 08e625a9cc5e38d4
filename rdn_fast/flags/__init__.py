"""The flags of every command. Read parser, shared, then the commands' own: training, pictures, files, machine."""

from rdn_fast.flags.commands import make_parser
from rdn_fast.flags.parser import with_dashes

__all__ = ["make_parser", "with_dashes"]

"""`python -m rdn_fast`: the command line, also of the ranks that rdn-fast or torchrun starts."""

import os
import sys
import traceback
from typing import NoReturn

from rdn_fast.cli import main
from rdn_fast.errors import RETRY


def run() -> None:
    try:
        code = main()
    except SystemExit as end:
        code = end.code or 0
    except Exception:
        if "RANK" not in os.environ:
            raise
        traceback.print_exc()  # as the interpreter would
        code = RETRY  # perhaps a device failed
    leave(code)


def leave(code: int) -> NoReturn:
    """Exit with this code. A rank skips the interpreter's shutdown, which gloo's threads may abort when others left."""
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()

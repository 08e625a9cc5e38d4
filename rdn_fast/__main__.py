"""`python -m rdn_fast`: the command line, also of the ranks that rdn-fast or torchrun starts."""

import os
import sys
import traceback

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
    if "RANK" in os.environ:
        # No orderly exit: gloo's threads may abort it when another rank has exited before.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()

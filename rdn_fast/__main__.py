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
        code = RETRY  # a device that failed, perhaps
    if (
        "RANK" in os.environ
    ):  # gloo's threads may abort the interpreter's orderly exit when another rank has left before
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()

import os
import sys

from rdn_fast.cli import main


def run() -> None:
    try:
        code = main()
    except SystemExit as end:
        code = end.code or 0
    if "RANK" in os.environ:  # gloo's threads may abort the interpreter's orderly exit when another rank has left before
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()

import os
import sys

from rdn_fast.cli import main


def run() -> None:
    try:
        code = main()
    except SystemExit as end:
        code = end.code or 0
    if code and "RANK" in os.environ:
        # A rank that ends in the middle of a conversation: gloo's threads would abort the interpreter's orderly exit.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()

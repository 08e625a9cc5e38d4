import sys

from rdn_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())

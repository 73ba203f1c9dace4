"""`python prepare.py ...` is `umamba prepare ...`."""

import sys

from umamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))

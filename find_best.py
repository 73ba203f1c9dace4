"""`python find_best.py ...` is `umamba find-best ...`."""

import sys

from umamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["find-best", *sys.argv[1:]]))

"""`python evaluate.py ...` is `umamba evaluate ...`."""

import sys

from umamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))

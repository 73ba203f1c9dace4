"""`python describe.py ...` is `umamba describe ...`."""

import sys

from umamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["describe", *sys.argv[1:]]))

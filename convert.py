"""`python convert.py ...` is `umamba convert ...`."""

import sys

from umamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))

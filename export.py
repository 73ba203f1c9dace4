"""`python export.py ...` is `umamba export ...`."""

import sys

from umamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))

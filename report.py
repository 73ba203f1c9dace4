"""`python report.py ...` is `umamba report ...`."""

import sys

from umamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))

"""`python predict.py ...` is `umamba predict ...`."""

import sys

from umamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))

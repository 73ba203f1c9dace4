"""`python train.py ...` is `umamba train ...`."""

import sys

from umamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

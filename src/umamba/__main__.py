"""`python -m umamba` is the program `umamba`."""

import sys

from umamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

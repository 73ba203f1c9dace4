"""`python export.py ...` is `umamba export ...`."""

from umamba.cli.main import program

if __name__ == "__main__":
    program("export")

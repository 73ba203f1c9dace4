"""`python convert.py ...` is `umamba convert ...`."""

from umamba.cli.main import program

if __name__ == "__main__":
    program("convert")

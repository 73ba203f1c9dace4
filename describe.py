"""`python describe.py ...` is `umamba describe ...`."""

from umamba.cli.main import program

if __name__ == "__main__":
    program("describe")

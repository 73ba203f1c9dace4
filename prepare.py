"""`python prepare.py ...` is `umamba prepare ...`."""

from umamba.cli.main import program

if __name__ == "__main__":
    program("prepare")

"""`python evaluate.py ...` is `umamba evaluate ...`."""

from umamba.cli.main import program

if __name__ == "__main__":
    program("evaluate")

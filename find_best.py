"""`python find_best.py ...` is `umamba find-best ...`."""

from umamba.cli.main import program

if __name__ == "__main__":
    program("find-best")

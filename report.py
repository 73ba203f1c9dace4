"""`python report.py ...` is `umamba report ...`."""

from umamba.cli.main import program

if __name__ == "__main__":
    program("report")

"""`python predict.py ...` is `umamba predict ...`."""

from umamba.cli.main import program

if __name__ == "__main__":
    program("predict")

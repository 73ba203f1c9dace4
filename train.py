"""`python train.py ...` is `umamba train ...`."""

from umamba.cli.main import program

if __name__ == "__main__":
    program("train")

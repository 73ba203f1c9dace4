"""`python -m umamba` is the program `umamba`."""

from umamba.cli.main import program

if __name__ == "__main__":
    program()

"""The command line: Hydra's composition, and one module for each command of the program `umamba`."""

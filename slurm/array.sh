#!/usr/bin/env bash
# One task of an array of trainings: array.sh PYTHON LIST. Submitted by `umamba slurm submit`.
# The interpreter replaces the shell, so that SLURM's warning before the time limit (--signal=B:USR1) reaches it.
exec "$1" -m umamba slurm task "$2"

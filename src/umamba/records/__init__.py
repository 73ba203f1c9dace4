"""Files of a run: run folder and file names, checkpoint record, tables, foreign checkpoints.

`umamba.records.tables` reads the tables. It is not imported here because it needs pandas and prediction does not.
"""

from umamba.records.checkpoint import Checkpoint, CheckpointRecord, network_weights, read_checkpoint
from umamba.records.official import find_checkpoint
from umamba.records.run_folder import RunFolder, experiment_folder, experiment_name

__all__ = [
    "Checkpoint",
    "CheckpointRecord",
    "RunFolder",
    "experiment_folder",
    "experiment_name",
    "find_checkpoint",
    "network_weights",
    "read_checkpoint",
]

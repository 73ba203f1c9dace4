"""What a run leaves on disk: its folder and file names, the record of a checkpoint, tables, foreign checkpoints.

`umamba.records.tables` reads the tables; it needs pandas, which prediction alone does not.
"""

from umamba.records.checkpoint import Checkpoint, CheckpointRecord, network_weights, read_checkpoint
from umamba.records.official import find_checkpoint
from umamba.records.run_folder import RunFolder, experiment_folder

__all__ = [
    "Checkpoint",
    "CheckpointRecord",
    "RunFolder",
    "experiment_folder",
    "find_checkpoint",
    "network_weights",
    "read_checkpoint",
]

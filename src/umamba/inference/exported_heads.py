"""Formats that hold a segmentation only refuse a network with a classification head, unless it may be left out."""

from pathlib import Path

from umamba.io import UserError
from umamba.records import CheckpointRecord


def refuse_heads(checkpoint: Path, record: CheckpointRecord, segmentation_only: bool) -> None:
    """Refuse to export a classification head that the format cannot hold.

    Args:
        checkpoint: the file, for the message.
        record: its record.
        segmentation_only: the head may be left out.

    Raises:
        UserError: there is a head and it may not be left out, or there is nothing else.
    """
    if record.heads is None:
        return
    if record.heads.alone:
        raise UserError(
            f"{checkpoint}: was trained for classes alone (heads.alone=true), and this format holds a segmentation. "
            "Use umamba predict, or format=share."
        )
    if not segmentation_only:
        raise UserError(
            f"{checkpoint}: this format cannot hold its classification head, {record.heads}. Give "
            "segmentation_only=true to leave the head out, or format=share to keep it."
        )

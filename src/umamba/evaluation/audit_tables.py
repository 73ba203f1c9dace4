"""The tables of an audit: cases.csv, parts.csv, slices.csv and pairs.csv, each with the most suspicious row first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from umamba.evaluation.audit import length_vox
from umamba.evaluation.audit_ranking import (
    KINDS,
    RankedCase,
    part_kind,
    part_sentence,
    ranked_pairs,
    ranked_parts,
    ranked_slices,
    reason,
)
from umamba.io.tabular import write_table

CASE_COLUMNS = (
    *("rank", "case", "review", "score", "kind", "reason", *(f"score_{kind}" for kind in KINDS)),
    *("dsc", "shift_vox", "growth_vox", "label_file"),
)
PART_COLUMNS = (
    *("rank", "case", "kind", "label", "segmentation", "size", "voxels", "margin", "z", "y", "x"),
    *("z_first", "z_last", "y_first", "y_last", "x_first", "x_last", "reason"),
)
SLICE_COLUMNS = ("rank", "case", "axis", "slice", "size", "voxels")
PAIR_COLUMNS = ("rank", "label", "segmentation", "cases", "parts", "voxels", "size", "worst_case")


def write_tables(
    output: Path, ranked: Sequence[RankedCase], names: Mapping[int, str], label_files: Mapping[str, Path], review: int
) -> None:
    """Write the four tables.

    Args:
        output: their folder, made if absent.
        ranked: the cases, the most suspicious one first.
        names: label value -> name.
        label_files: case -> its label map.
        review: how many cases are listed for review.

    Raises:
        StorageError: a table cannot be written.
    """
    text = {0: "background", **names}
    _write(output / "cases.csv", CASE_COLUMNS, [
        (each.case, "yes" if rank < review else "no", round(each.score, 2), each.main.kind,
         reason(each, names), *(round(each.score_of(kind), 2) for kind in KINDS), *_measures(each),
         str(label_files[each.case]))
        for rank, each in enumerate(ranked)
    ])  # fmt: skip
    _write(output / "parts.csv", PART_COLUMNS, [
        (case, part_kind(part), text[part.given], text[part.predicted], round(part.size, 3), part.voxels,
         round(part.margin, 3), *part.centre_zyx, *(place for ends in part.box_zyx for place in ends),
         part_sentence(part, names))
        for case, part in ranked_parts(ranked)
    ])  # fmt: skip
    _write(output / "slices.csv", SLICE_COLUMNS, [
        (case, "zyx"[own.axis], own.index, round(own.size, 3), own.voxels) for case, own in ranked_slices(ranked)
    ])  # fmt: skip
    _write(output / "pairs.csv", PAIR_COLUMNS, [
        (text[pair.given], text[pair.predicted], pair.cases, pair.parts, pair.voxels, round(pair.size, 3), pair.worst)
        for pair in ranked_pairs(ranked)
    ])  # fmt: skip


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    numbered = [(rank, *row) for rank, row in enumerate(rows, start=1)]
    write_table(path, pandas.DataFrame(numbered, columns=list(columns)))


def _measures(case: RankedCase) -> tuple[float, float, float]:
    """Return the mean DSC over labels, the largest shift and the largest growth; NaN where there is none."""
    overlaps, missing = list(case.facts.overlaps.values()), float("nan")
    shifts = [length_vox(own.shift_vox) for own in case.facts.offsets]
    growth = max((own.growth_vox for own in case.facts.offsets), key=abs, default=missing)
    return (
        round(sum(overlaps) / len(overlaps), 4) if overlaps else missing,
        round(max(shifts), 2) if shifts else missing,
        round(growth, 2),
    )

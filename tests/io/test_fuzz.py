"""Generated files of every format, whole and damaged, against independent readers (fuzz.py)."""

import runpy
from collections import Counter
from pathlib import Path

import pytest

_FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_300_files_are_read_rightly_or_refused_in_one_sentence(tmp_path: Path, seed: int) -> None:
    fuzz = runpy.run_path(str(_FUZZ))
    found = {sample.name: (sample.damaged, fuzz["outcome"](sample)) for sample in fuzz["generate"](tmp_path, 300, seed)}
    wrong = {name: said for name, (_, said) in found.items() if not said.startswith(("equal", "refused"))}
    assert wrong == {}
    refused = {name: said for name, (damaged, said) in found.items() if not damaged and said.startswith("refused")}
    assert {said.rpartition(": ")[2] for said in refused.values()} <= {
        "grey with an alpha channel. Store the grey values alone."
    }, refused
    counted = Counter(said.partition(":")[0] for _, said in found.values())
    assert counted["equal"] > 150
    assert counted["refused"] > 80

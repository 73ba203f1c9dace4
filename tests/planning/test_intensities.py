"""The intensities of the fingerprint: bits and memory of their statistics."""

import tracemalloc

import numpy as np
import pytest

from umamba.planning.fingerprint import CaseStatistics, draw_intensities, intensity_of, pooled_fingerprint


@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_the_bits_are_those_of_the_plain_formulas(kind: type) -> None:
    """Fingerprints decide the names of prepared datasets, so that not even the last bit may change."""
    rng = np.random.default_rng(3)
    cases: list[np.ndarray] = [
        rng.normal(100, 30, (1, size)).astype(kind) for size in (9, 500, 40_000)
    ]  # few voxels: large counts
    pairs = []
    for voxels in cases:
        drawn = np.random.RandomState(1234).choice(voxels[0], 30_000, replace=True)
        pairs += list(zip(*np.unique(drawn.astype(np.float32), return_counts=True), strict=True))
    pairs.sort(key=lambda pair: pair[0])
    values, counts = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    mean = float(values @ counts) / counts.sum()
    draws = np.repeat(values, counts.astype(int))
    parts = [next(draw_intensities(voxels, 30_000)) for voxels in cases]
    assert [part.counts.dtype for part in parts] == [np.uint16, *[np.uint8 if kind is np.float32 else np.uint16] * 2]
    found = intensity_of(parts)
    assert found.mean == mean
    assert found.std == float(np.sqrt(((values - mean) ** 2) @ counts / counts.sum()))
    assert (found.min, found.max) == (draws[0], draws[-1])
    for percent, own in ((50, found.median), (0.5, found.percentile_00_5), (99.5, found.percentile_99_5)):
        rank = percent / 100 * (len(draws) - 1)
        low, high = draws[int(np.floor(rank))], draws[int(np.ceil(rank))]
        assert own == low + (high - low) * (rank - np.floor(rank))


def test_memory_for_intensities_that_do_not_repeat() -> None:
    """A draw takes 4 bytes of its value and 1 of its count, and the statistics of a channel 17 bytes at most."""
    rng = np.random.default_rng(4)
    cases, draws, channels = 5, 100_000, 3
    intensity_of([next(draw_intensities(rng.random((1, 9)), 9))])  # numpy allocates its own at the first call
    tracemalloc.start()
    try:
        statistics = [
            CaseStatistics(
                (),
                (1.0, 1.0, 1.0),
                (9, 9, 9),
                draws=list(draw_intensities(rng.random((channels, 10 * draws), np.float32), draws)),
            )
            for _ in range(cases)
        ]
        held = tracemalloc.get_traced_memory()[0] / (cases * draws)
        tracemalloc.reset_peak()
        pooled_fingerprint("Dataset001_Test", statistics)
        left, peak = (size / (cases * draws) for size in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert held < 5.1 * channels
    assert peak < 5.1 * (channels - 1) + 17.5  # without the first channel's own draws
    assert left < 0.1

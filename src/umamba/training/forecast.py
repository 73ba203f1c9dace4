"""Forecast what twice the training time would bring, from a run's own curve: a power law, and its uncertainty.

The error 1 - Dice after t seconds is fitted by floor + scale * t ** -exponent, the form of learning curves (Cortes et
al., 1993; Hestness et al., 2017). A bootstrap of the residuals in blocks gives the distribution of the gain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SMALL_GAIN = 0.005  # Dice that counts as a gain
_LEAST = 8  # points
_BEGIN = 0.1  # share of the time before which the curve is no power law yet
_SAMPLES = 1000
_PARAMETERS = 3  # of the power law
_EXPONENTS = np.geomspace(0.05, 3.0, 40)


@dataclass(frozen=True)
class Forecast:
    """The gain in patch Dice that twice the time would probably bring.

    Attributes:
        gain: median.
        low: quantile 0.05.
        high: quantile 0.95.
        probability: that the gain is at least `SMALL_GAIN`.
        points: epochs that the curve was fitted to.
    """

    gain: float
    low: float
    high: float
    probability: float
    points: int

    def sentence(self) -> str:
        """Return the forecast in words."""
        return (
            f"Twice the time would probably raise the patch Dice by {self.gain:.3f} (90 % interval {self.low:.3f} to "
            f"{self.high:.3f}; at least {SMALL_GAIN:g} with probability {self.probability:.2f}), if a power law "
            f"fitted to {self.points} epochs of this run goes on."
        )


def forecast(seconds: Sequence[float], dice: Sequence[float], seed: int = 0) -> Forecast | None:
    """Return what twice the time would bring.

    Args:
        seconds: training time after each epoch, rising.
        dice: patch Dice of each epoch; NaN: none.
        seed: of the bootstrap.

    Returns:
        The forecast; None: too few epochs for one.
    """
    if not seconds:
        return None
    times, errors = np.asarray(seconds, dtype=float), 1 - np.asarray(dice, dtype=float)
    used = np.isfinite(errors) & (times >= _BEGIN * times[-1])
    if used.sum() < _LEAST:
        return None
    relative, errors = times[used] / times[-1], errors[used]
    fitted, _ = _fit(relative, errors[None])
    residuals = (errors - fitted[0]) * math.sqrt(len(errors) / (len(errors) - _PARAMETERS))
    samples = fitted + _blocks(residuals, np.random.default_rng(seed))
    _, gains = _fit(relative, samples)
    low, gain, high = np.quantile(gains, [0.05, 0.5, 0.95])
    probability = float(np.mean(gains >= SMALL_GAIN))
    return Forecast(float(gain), float(low), float(high), probability, int(used.sum()))


def curve(rows: Sequence[Mapping[str, str]]) -> tuple[list[float], list[float]]:
    """Return the seconds and the patch Dice of each epoch of a run with a time budget.

    Args:
        rows: of metrics.csv.
    """
    known = [row for row in rows if row.get("time/used_s")]
    dice = [row.get("val/patch_dice") or row.get("seen/patch_dice") or "nan" for row in known]
    return [float(row["time/used_s"]) for row in known], [float(value) for value in dice]


def _fit(times: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit power laws by least squares, with a floor and a scale that are not negative.

    Args:
        times: (N), 1 at the end of the training.
        errors: (M, N), M curves.

    Returns:
        The fitted curves (M, N), and what each loses between the times 1 and 2 (M).
    """
    best = np.full(len(errors), np.inf)
    curves, gains = np.zeros_like(errors), np.zeros(len(errors))
    for exponent in _EXPONENTS:
        x = times**-exponent
        centred = x - x.mean()
        scale = np.maximum(0.0, errors @ centred / (centred @ centred))
        floor = errors.mean(axis=1) - scale * x.mean()
        through_zero = floor < 0
        scale[through_zero] = np.maximum(0.0, errors[through_zero] @ x / (x @ x))
        floor[through_zero] = 0.0
        found = floor[:, None] + scale[:, None] * x
        loss = ((errors - found) ** 2).sum(axis=1)
        better = loss < best
        best[better], curves[better] = loss[better], found[better]
        gains[better] = scale[better] * (1 - 2.0**-exponent)
    return curves, gains


def _blocks(residuals: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return residuals (M, N) drawn in blocks that wrap around, because those of successive epochs may be alike."""
    count = len(residuals)
    length = math.ceil(count ** (1 / 3))
    starts = generator.integers(0, count, size=(_SAMPLES, math.ceil(count / length)))
    index = (starts[:, :, None] + np.arange(length)) % count
    return np.asarray(residuals[index.reshape(_SAMPLES, -1)[:, :count]])

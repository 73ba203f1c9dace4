"""Which normalisation a channel gets by its name, and whether it looks inside the nonzero mask only.

nnU-Net: preprocessing/normalization/map_channel_name_to_normalization.py and the planner's use of the mask.
"""

from umamba.planning.rules import RuleSet

MASK_BELOW = 0.75  # median relative size after the crop
_SCHEMES = {
    "CT": "CTNormalization",
    "noNorm": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
SCHEMES = tuple(_SCHEMES.values())
_MASKED = "ZScoreNormalization"


def normalization_of(channel_name: str, rules: RuleSet) -> str:
    """Return nnU-Net's name of the scheme for a channel; z-score unless the name says otherwise."""
    known = {name.casefold(): scheme for name, scheme in _SCHEMES.items()} if rules.folds_case else _SCHEMES
    return known.get(channel_name.casefold() if rules.folds_case else channel_name, _MASKED)


def uses_mask(scheme: str, median_relative_size: float) -> bool:
    """Return whether a channel is normalised inside the nonzero mask only: z-score where the crop took much away."""
    return scheme == _MASKED and median_relative_size < MASK_BELOW

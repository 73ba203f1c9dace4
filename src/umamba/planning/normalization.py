"""Choose the normalisation of a channel by its name, and whether it uses only voxels inside the nonzero mask.

The rules are those of nnU-Net's preprocessing/normalization/map_channel_name_to_normalization.py and of its planner.
"""

from umamba.planning.rules import RuleSet

MASK_BELOW = 0.75  # the mask is used if the median relative size after the crop is below this
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
    """Return the normalisation scheme of a channel, under nnU-Net's name.

    Args:
        channel_name: name of the channel in dataset.json. An unknown name, such as "T1", gives z-score.
        rules: the rule set, which says whether upper and lower case matter.
    """
    known = {name.casefold(): scheme for name, scheme in _SCHEMES.items()} if rules.folds_case else _SCHEMES
    return known.get(channel_name.casefold() if rules.folds_case else channel_name, _MASKED)


def uses_mask(scheme: str, median_relative_size: float) -> bool:
    """Return whether a channel is normalised only inside the nonzero mask.

    Args:
        scheme: nnU-Net's name of the scheme; only z-score uses the mask.
        median_relative_size: median over the cases of the voxels after the crop / before it.
    """
    return scheme == _MASKED and median_relative_size < MASK_BELOW

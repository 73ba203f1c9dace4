"""The planners that can be followed, as data: nnU-Net 2.8.1's default and residual ones, and the U-Mamba fork's.

nnU-Net: experiment_planning/experiment_planners; the fork froze nnU-Net 2.1.1, whose 2D patches were smaller (README).
"""

from dataclasses import dataclass

from umamba.io import UserError

BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}
PLAIN_BLOCKS = 2
RESIDUAL_BLOCKS = (1, 3, 4, 6)  # of the first encoder stages; the last entry goes on
RESIDUAL_DECODER_BLOCKS = 1
REFERENCE_BATCH = {2: 12, 3: 2}
MIN_BATCH = 2
ANISOTROPY = 3.0
LOWRES_BELOW = 0.25  # patch voxels / median voxels
LOWRES_STEP = 1.03
LOWRES_MIN_RATIO = 2.0  # full / low-resolution voxels, where a low resolution too close is dropped


@dataclass(frozen=True)
class RuleSet:
    """Where the planners differ.

    Attributes:
        name: what `rules` is called in a plan.
        memory_gb: GPU memory the references stand for.
        reference_2d: feature map values that a 2D batch of 12 may have at that memory.
        reference_3d: feature map values that a 3D batch of 2 may have.
        fit_batch: patches shrink until a batch of this size fits; None: until the reference batch does.
        coverage: share of the dataset's voxels that a batch may cover.
        drops_close_lowres: whether 3d_lowres is dropped if it is not much smaller than 3d_fullres.
        folds_case: whether upper and lower case are the same in channel names.
        residual_encoder: plan for residual blocks.
    """

    name: str
    memory_gb: float
    reference_2d: float
    reference_3d: float
    fit_batch: int | None
    coverage: float
    drops_close_lowres: bool
    folds_case: bool
    residual_encoder: bool

    def reference(self, dim: int, gpu_memory_gb: float | None) -> float:
        """Return the feature map values that the reference batch may have at that memory (None: `memory_gb`)."""
        value = self.reference_2d if dim == 2 else self.reference_3d
        return value * ((self.memory_gb if gpu_memory_gb is None else gpu_memory_gb) / self.memory_gb)

    def features(self, num_stages: int, dim: int) -> tuple[int, ...]:
        """Return the features of each stage: doubled up to the maximum."""
        return tuple(min(BASE_FEATURES * 2**stage, MAX_FEATURES[dim]) for stage in range(num_stages))

    def encoder_blocks(self, num_stages: int) -> tuple[int, ...]:
        """Return the convolutions or residual blocks of each encoder stage."""
        if not self.residual_encoder:
            return (PLAIN_BLOCKS,) * num_stages
        return tuple(RESIDUAL_BLOCKS[min(stage, len(RESIDUAL_BLOCKS) - 1)] for stage in range(num_stages))

    def decoder_blocks(self, num_stages: int) -> tuple[int, ...]:
        """Return the convolutions of each decoder stage."""
        return (RESIDUAL_DECODER_BLOCKS if self.residual_encoder else PLAIN_BLOCKS,) * (num_stages - 1)


def _residual(name: str, memory_gb: float, reference_2d: float, reference_3d: float) -> RuleSet:
    return RuleSet(name, memory_gb, reference_2d, reference_3d, None, 1.0, True, True, True)


RULES = (
    RuleSet("nnunet", 8, 85e6, 560e6, 2, 0.05, True, True, False),
    RuleSet("umamba", 8, 85e6, 560e6, None, 0.05, False, False, False),
    _residual("resenc_m", 8, 135e6, 680e6),
    _residual("resenc_l", 24, 380e6, 2100e6),
    _residual("resenc_xl", 40, 560e6, 3600e6),
)


def rule_set(name: str) -> RuleSet:
    """Return a rule set by name.

    Raises:
        UserError: there is none of that name.
    """
    for rules in RULES:
        if rules.name == name:
            return rules
    raise UserError(f"planner.rules={name} is unknown. Choose one of {', '.join(rules.name for rules in RULES)}.")

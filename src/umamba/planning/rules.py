"""The rule sets of the planner: nnU-Net 2.8.1's default and residual planners, and that of U-Mamba's fork.

The values are those of nnU-Net's experiment_planning/experiment_planners. The fork is based on nnU-Net 2.1.1, which
plans smaller 2D patches.
"""

from dataclasses import dataclass

from umamba.io import UserError

BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}
PLAIN_BLOCKS = 2
RESIDUAL_BLOCKS = (1, 3, 4, 6)  # of the first encoder stages; all later stages have the last number
RESIDUAL_DECODER_BLOCKS = 1
REFERENCE_BATCH = {2: 12, 3: 2}
MIN_BATCH = 2
ANISOTROPY = 3.0  # ratio of spacings above which an axis is treated as anisotropic
LOWRES_BELOW = 0.25  # 3d_lowres is planned if a patch covers a smaller fraction of the median image
LOWRES_STEP = 1.03  # factor of the spacing per step towards a lower resolution
LOWRES_MIN_RATIO = 2.0  # 3d_lowres is dropped if 3d_fullres has fewer than this many times its voxels


@dataclass(frozen=True)
class RuleSet:
    """The values in which the planners differ.

    Attributes:
        name: name of the rule set.
        memory_gb: GPU memory in GB to which the reference values belong.
        reference_2d: feature map values that a 2D batch of 12 may have with that memory.
        reference_3d: feature map values that a 3D batch of 2 may have with that memory.
        fit_batch: patches shrink until a batch of this size fits; None: until the reference batch fits.
        coverage: fraction of the dataset's voxels that a batch may cover.
        drops_close_lowres: whether 3d_lowres is dropped if 3d_fullres does not have many more voxels.
        folds_case: whether channel names are compared without regard to upper and lower case.
        residual_encoder: whether the encoder has residual blocks.
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
        """Return the feature map values that the reference batch may have.

        Args:
            dim: 2 or 3.
            gpu_memory_gb: GPU memory in GB; None: `memory_gb`.
        """
        value = self.reference_2d if dim == 2 else self.reference_3d
        return value * ((self.memory_gb if gpu_memory_gb is None else gpu_memory_gb) / self.memory_gb)

    def features(self, num_stages: int, dim: int) -> tuple[int, ...]:
        """Return the feature maps of each encoder stage: doubled per stage, up to a maximum.

        Args:
            num_stages: number of encoder stages.
            dim: 2 or 3.
        """
        return tuple(min(BASE_FEATURES * 2**stage, MAX_FEATURES[dim]) for stage in range(num_stages))

    def encoder_blocks(self, num_stages: int) -> tuple[int, ...]:
        """Return the number of convolutions or residual blocks of each encoder stage.

        Args:
            num_stages: number of encoder stages.
        """
        if not self.residual_encoder:
            return (PLAIN_BLOCKS,) * num_stages
        return tuple(RESIDUAL_BLOCKS[min(stage, len(RESIDUAL_BLOCKS) - 1)] for stage in range(num_stages))

    def decoder_blocks(self, num_stages: int) -> tuple[int, ...]:
        """Return the number of convolutions of each decoder stage.

        Args:
            num_stages: number of encoder stages.
        """
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

    Args:
        name: its name.

    Raises:
        UserError: the name is unknown.
    """
    for rules in RULES:
        if rules.name == name:
            return rules
    raise UserError(f"planner.rules={name} is unknown. Choose one of {', '.join(rules.name for rules in RULES)}.")

"""The `architecture` group: one record for each backbone. The defaults are those of the authors' released code."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from umamba.settings.entry_points import BACKBONES, name_problem, resolved
from umamba.settings.fields import key
from umamba.settings.validate import Settings


@dataclass(frozen=True)
class ArchitectureSettings(Settings):
    """The name of a backbone; the record of each backbone adds its options."""

    section: ClassVar[str] = "architecture"
    name: str = key("", "The backbone.")


@dataclass(frozen=True)
class _UMambaSettings(ArchitectureSettings):
    """Options that U-Mamba Bot and Enc share."""

    blocks: Literal["official", "paper"] = key(
        "official",
        "Residual blocks. official: one in the deeper half of the encoder and in the shallower half of the decoder, "
        "elsewhere the plan's number. paper: two in every encoder and decoder stage.",
    )
    full_resolution_skip: Literal["official", "always"] = key(
        "official", "Skip at full resolution. official: 3D decoders have it, 2D decoders do not. always: 2D has it too."
    )
    decoder_upsampling: Literal["nearest", "transposed"] = key(
        "nearest",
        "Upsampling in the decoder. nearest: nearest neighbour and a 1x1 convolution (released code). transposed: a "
        "transposed convolution (paper).",
    )
    mixer: Literal["mamba", "mamba2", "mlstm", "convolution", "identity"] = key(
        "mamba",
        "The layer between the convolutions. mamba: the paper's. Controls, everything else unchanged: mamba2 and mlstm "
        "(other sequence layers), convolution (a large depthwise convolution instead of the scan), identity (no "
        "layer).",
    )
    match: Literal["none", "parameters"] = key(
        "none",
        "Inner width of mamba2, mlstm or convolution. none: expand times the model width, as in mamba. parameters: the "
        "width at which the layer has as many parameters as the Mamba layer in its place, as nearly as possible.",
    )
    mixer_kernel: int = key(7, "mixer=convolution: kernel size along each axis, odd.", low=1, high=63)
    head_width: int = key(64, "mixer=mamba2 and mlstm: width of a head.", low=1, high=4096)
    mamba: Literal[True, "identity"] = key(True, "Older name of a mixer. identity: the same as mixer=identity.")
    residual: bool = key(False, "Add the Mamba layer's input to its output; the released code does not.")
    d_state: int = key(16, "State size of the scan, for each channel.", low=1, high=4096)
    d_conv: int = key(4, "Kernel length of the causal convolution in front of the scan.", low=1, high=1024)
    expand: int = key(2, "Inner width of a Mamba layer as a multiple of its model width.", low=1, high=256)
    scan_backend: Literal["auto", "reference", "cpu", "triton", "cuda"] = key(
        "auto", "Backend of the scan. auto: the fastest one that works on the device; or the name of a backend."
    )
    scan_directions: Literal["forward", "bidirectional", "axes"] = key(
        "forward",
        "Order of the voxels in a scan. forward: C order (released code). bidirectional: forward and backward. axes: "
        "as many scans as axes, each with another axis as the fastest. Each direction has its own weights; the "
        "outputs are averaged (ablation).",
    )

    def __post_init__(self) -> None:
        """Check the values; `mixer` and its older name `mamba` then say the same."""
        super().__post_init__()
        if "identity" in (self.mamba, self.mixer):
            object.__setattr__(self, "mixer", "identity")
            object.__setattr__(self, "mamba", "identity")

    def conflicts(self) -> Iterator[str]:
        """Yield two mixers at once, and options that the mixer does not have."""
        yield from super().conflicts()
        if self.mamba == "identity" and self.mixer not in ("mamba", "identity"):
            yield f"architecture.mamba=identity: contradicts architecture.mixer={self.mixer}. Give mixer alone."
        if self.mixer_kernel % 2 == 0:
            yield f"architecture.mixer_kernel={self.mixer_kernel}: must be odd, so that the kernel has a centre."
        if "identity" in (self.mamba, self.mixer) and self.match == "parameters":
            yield "architecture.match=parameters: mixer=identity has no parameters. Give match=none."
        for name in _LACKING[self.mixer]:
            value, default = getattr(self, name), next(each.default for each in fields(self) if each.name == name)
            if value != default:
                yield f"architecture.{name}={value}: mixer={self.mixer} does not have this option. Leave it out."


# The options that a mixer does not have. Those of identity are accepted: runs of earlier versions hold them.
_LACKING: Mapping[str, tuple[str, ...]] = {
    "mamba": ("mixer_kernel", "head_width"),
    "mamba2": ("mixer_kernel", "scan_backend"),
    "mlstm": ("mixer_kernel", "scan_backend", "d_state"),
    "convolution": ("head_width", "scan_backend", "scan_directions", "d_state", "d_conv"),
    "identity": ("mixer_kernel", "head_width"),
}


@dataclass(frozen=True)
class UMambaBotSettings(_UMambaSettings):
    """U-Mamba with one Mamba layer, on the bottleneck (paper, Figure 1)."""

    name: Literal["umamba_bot"] = key("umamba_bot", "The backbone.")


@dataclass(frozen=True)
class UMambaEncSettings(_UMambaSettings):
    """U-Mamba with Mamba layers in the encoder (paper, Figure 1)."""

    name: Literal["umamba_enc"] = key("umamba_enc", "The backbone.")
    mamba_stages: Literal["official", "all"] | tuple[int, ...] = key(
        "official",
        "Encoder stages with a Mamba layer. official: all in 3D, every second one up to the last in 2D. all; or a list "
        "such as [0, 2, 4], counted from 0 at full resolution.",
        low=0,
    )


@dataclass(frozen=True)
class UNetSettings(ArchitectureSettings):
    """nnU-Net's plain convolutional U-Net; the plan determines all of it."""

    name: Literal["unet"] = key("unet", "The backbone.")


@dataclass(frozen=True)
class ResEncUNetSettings(ArchitectureSettings):
    """nnU-Net's residual-encoder U-Net; the plan (planner=resenc_m, resenc_l, resenc_xl) determines all of it."""

    name: Literal["resenc_unet"] = key("resenc_unet", "The backbone.")


@dataclass(frozen=True)
class SegResNetSettings(ArchitectureSettings):
    """MONAI's SegResNet with the settings of U-Mamba's trainer; train it with recipe=segresnet."""

    name: Literal["segresnet"] = key("segresnet", "The backbone.")
    init_filters: int = key(
        32, "Channels at full resolution, a multiple of 8; they double with each level.", low=1, high=4096
    )
    blocks_down: tuple[int, ...] = key((1, 2, 2, 4), "Residual blocks of each encoder level.", low=1, high=256)
    blocks_up: tuple[int, ...] = key(
        (1, 1, 1), "Residual blocks of each decoder level, from the bottleneck up.", low=1, high=256
    )

    def conflicts(self) -> Iterator[str]:
        """Yield the options for which MONAI's SegResNet cannot be built."""
        if len(self.blocks_up) != len(self.blocks_down) - 1:
            yield (
                f"architecture.blocks_up={list(self.blocks_up)}: must have one entry less than "
                f"architecture.blocks_down, which has {len(self.blocks_down)}."
            )
        if self.init_filters % 8:
            yield f"architecture.init_filters={self.init_filters}: must be a multiple of 8 because of the group norm."


@dataclass(frozen=True)
class UNETRSettings(ArchitectureSettings):
    """MONAI's UNETR with the settings of U-Mamba's trainer; train it with recipe=unetr."""

    name: Literal["unetr"] = key("unetr", "The backbone.")
    feature_size: int = key(16, "Channels of the convolutional decoder at full resolution.", low=1, high=8192)
    hidden_size: int = key(768, "Width of the transformer, a multiple of num_heads.", low=1, high=65536)
    mlp_dim: int = key(3072, "Width of the transformer's hidden layers.", low=1, high=262144)
    num_heads: int = key(12, "Attention heads.", low=1, high=4096)

    def conflicts(self) -> Iterator[str]:
        """Yield the options for which MONAI's UNETR cannot be built."""
        if self.hidden_size % self.num_heads:
            yield (
                f"architecture.hidden_size={self.hidden_size}: must be a multiple of "
                f"architecture.num_heads={self.num_heads}."
            )


@dataclass(frozen=True)
class SwinUNETRSettings(ArchitectureSettings):
    """MONAI's SwinUNETR with the settings of U-Mamba's trainer; train it with recipe=swinunetr."""

    name: Literal["swinunetr"] = key("swinunetr", "The backbone.")
    feature_size: int = key(
        48,
        "Channels after the patch embedding, a multiple of 12 and of num_heads; they double with each stage.",
        low=1,
        high=12288,
    )
    depths: tuple[int, ...] = key(
        (2, 2, 2, 2), "Transformer blocks of each of the four stages.", low=1, high=256, lengths=(4,)
    )
    num_heads: tuple[int, ...] = key(
        (3, 6, 12, 24), "Attention heads of each of the four stages.", low=1, high=4096, lengths=(4,)
    )
    monai_compat: Literal["1.3", "1.6"] = key(
        "1.3",
        "Patch merging in 3D. 1.3: as in the MONAI that the paper used (two of eight sub-grids twice, two never). 1.6: "
        "corrected.",
    )

    def conflicts(self) -> Iterator[str]:
        """Yield the options for which MONAI's SwinUNETR cannot be built."""
        fits = all(self.feature_size * 2**stage % heads == 0 for stage, heads in enumerate(self.num_heads))
        if self.feature_size % 12 or not fits:
            yield (
                f"architecture.feature_size={self.feature_size}: must be a multiple of 12, and its multiples by "
                f"1, 2, 4 and 8 must be multiples of architecture.num_heads={list(self.num_heads)}."
            )


@dataclass(frozen=True)
class CustomArchitectureSettings(ArchitectureSettings):
    """A backbone of the user's own: package.module:function, or an entry point, which is replaced by its function.

    Its options stay plain values here because the record that checks them is in the user's module (see
    `umamba.networks.build.custom_settings`).
    """

    open_field: ClassVar[str] = "options"
    entry_points: ClassVar[str] = BACKBONES
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the name, and replace an entry point by its function, so that a checkpoint says which code it needs.

        Raises:
            InvalidSettings: the name is no function that may be named.
        """
        object.__setattr__(self, "name", resolved(str(self.name), BACKBONES))
        super().__post_init__()

    def conflicts(self) -> Iterator[str]:
        """Yield a name that cannot be imported."""
        problem = name_problem(self.name, "architecture.name", BACKBONES)
        if problem is not None:
            yield problem


# name -> record; the empty name stands for a backbone of the user's own.
ARCHITECTURES: Mapping[str, type[ArchitectureSettings]] = {
    "umamba_bot": UMambaBotSettings,
    "umamba_enc": UMambaEncSettings,
    "unet": UNetSettings,
    "resenc_unet": ResEncUNetSettings,
    "segresnet": SegResNetSettings,
    "unetr": UNETRSettings,
    "swinunetr": SwinUNETRSettings,
    "": CustomArchitectureSettings,
}


@dataclass(frozen=True, kw_only=True)
class TrustSettings(Settings):
    """Whose code a checkpoint may run."""

    trust: str | tuple[str, ...] = key(
        (),
        "Packages whose backbones a checkpoint may use, such as mypackage: their code runs. The backbones of this "
        "project need no trust.",
    )


@dataclass(frozen=True)
class _Holder(Settings):
    """A record around one architecture, so that the validator can read it without the other groups."""

    architecture: ArchitectureSettings = key(UMambaBotSettings, variants=ARCHITECTURES)


def read_architecture(values: Mapping[str, Any] | str | ArchitectureSettings) -> ArchitectureSettings:
    """Return the settings record of a backbone.

    Args:
        values: the backbone's name, plain values with a `name`, or the record itself.

    Raises:
        InvalidSettings: an unknown backbone, an unknown option, or a value that an option does not take.

    >>> read_architecture("umamba_enc").mamba_stages
    'official'
    """
    if isinstance(values, ArchitectureSettings):
        return values
    given = {"name": values} if isinstance(values, str) else values
    return _Holder(architecture=given).architecture  # type: ignore[arg-type]

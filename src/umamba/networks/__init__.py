"""U-Mamba, the networks that it is compared with, the Mamba block, and the selective scan with its backends."""

from umamba.networks.build import architecture_names, build_network, custom_settings
from umamba.networks.from_patch import configuration_for_patch
from umamba.networks.mamba import Mamba
from umamba.networks.official_keys import official_architecture, official_state_dict, to_official_state_dict
from umamba.networks.scan import selective_scan
from umamba.networks.umamba import UMambaBot, UMambaEnc

__all__ = [
    "Mamba",
    "UMambaBot",
    "UMambaEnc",
    "architecture_names",
    "build_network",
    "configuration_for_patch",
    "custom_settings",
    "official_architecture",
    "official_state_dict",
    "selective_scan",
    "to_official_state_dict",
]

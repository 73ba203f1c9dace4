"""Selective scan and its backends, the Mamba layer, U-Mamba, the networks it was compared with, `build_network`."""

from umamba.networks.build import architecture_names, build_network
from umamba.networks.official_keys import official_architecture, official_state_dict, to_official_state_dict

__all__ = [
    "architecture_names",
    "build_network",
    "official_architecture",
    "official_state_dict",
    "to_official_state_dict",
]

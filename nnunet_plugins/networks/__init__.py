"""Mamba networks with nnU-Net's constructor names, usable without nnU-Net."""

from nnunet_plugins.networks.endomamba import EndoMamba, EndoMambaBackbone
from nnunet_plugins.networks.hymamba import HyMamba
from nnunet_plugins.networks.vanilla_mamba import VanillaMamba
from nnunet_plugins.networks.vivim import Vivim

__all__ = ["EndoMamba", "EndoMambaBackbone", "HyMamba", "VanillaMamba", "Vivim"]

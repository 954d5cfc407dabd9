"""Mamba networks with nnU-Net's constructor names, usable without nnU-Net."""

from nnunet_plugins.networks.hymamba import HyMamba
from nnunet_plugins.networks.vanilla_mamba import VanillaMamba

__all__ = ["HyMamba", "VanillaMamba"]

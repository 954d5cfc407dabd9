"""Crops of unlabelled volumes: find scans, look through them, prepare them once, draw crops."""

from pretrain.volumes.cache import VolumeCache
from pretrain.volumes.crops import VolumeCrops
from pretrain.volumes.first_pass import Findings, Kept, describe, first_pass
from pretrain.volumes.preparation import Preparation
from pretrain.volumes.reading import UnusableScan
from pretrain.volumes.scans import Scan, find_scans

__all__ = [
    "Findings",
    "Kept",
    "Preparation",
    "Scan",
    "UnusableScan",
    "VolumeCache",
    "VolumeCrops",
    "describe",
    "find_scans",
    "first_pass",
]

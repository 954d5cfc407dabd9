"""Pretraining of the networks in `nnunet_plugins.networks` on unlabelled volumes and video."""

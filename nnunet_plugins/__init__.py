"""Mamba networks for nnU-Net v2: networks, trainers, planners, and how stock nnU-Net finds them.

This module imports nothing: it is loaded at interpreter start (see `discovery`).
"""

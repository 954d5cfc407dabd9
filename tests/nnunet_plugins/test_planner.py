"""The planner's memory estimate follows the network, and its plans name it."""

import json

import pytest
import torch

from nnunet_plugins.memory import training_bytes
from nnunet_plugins.networks import HyMamba

WIDTHS = (8, 12, 16)


def build() -> HyMamba:
    return HyMamba(1, 2, features_per_stage=WIDTHS, mamba_depth=1, deep_supervision=True)


def test_activations_grow_with_voxels_and_images_and_weights_do_not():
    one = training_bytes(build, (1, 16, 16, 16), 1)
    weights = 16 * sum(p.numel() for p in build().parameters())
    assert training_bytes(build, (1, 16, 16, 16), 3) - weights == pytest.approx(3 * (one - weights))
    doubled = training_bytes(build, (1, 32, 16, 16), 1) - weights
    assert doubled == pytest.approx(2 * (one - weights), rel=0.05)


def test_what_is_counted_is_what_autograd_keeps():
    """The count on the meta device equals the count on a CPU, with real numbers."""
    kept = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage()._cdata] = x
        return x

    network = build()
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network(torch.randn(1, 1, 16, 16, 16))
    sizes = [x.untyped_storage().nbytes() for key, x in kept.items() if key not in own]
    weights = 16 * sum(p.numel() for p in network.parameters())
    real = 0.6 * (sum(sizes) + 2 * max(sizes))
    assert training_bytes(build, (1, 16, 16, 16), 1) - weights == pytest.approx(real, rel=0.1)


def test_plans_fit_the_memory_and_are_trained_on_by_stock_and_own_trainers(nnunet):
    nnunet(
        "nnUNetv2_plan_experiment", "-d", "901", "-pl", "HyMambaPlanner", "-gpu_memory_target", "4",
    )  # fmt: skip
    plans = json.loads((nnunet.preprocessed / "nnUNetHyMambaPlans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    architecture = configuration["architecture"]
    assert architecture["network_class_name"] == "nnunet_plugins.networks.hymamba.HyMamba"
    patch = configuration["patch_size"]

    def network() -> HyMamba:
        return HyMamba(1, 3, deep_supervision=True, **architecture["arch_kwargs"])

    assert training_bytes(network, (1, *patch), configuration["batch_size"]) < 4 * 2**30
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    stock = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], [], 1, 3,
        deep_supervision=False,
    )  # fmt: skip
    assert stock(torch.zeros(1, 1, *patch)).shape == (1, 3, *patch)

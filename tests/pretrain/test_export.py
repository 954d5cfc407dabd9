"""Pretrained weights leave as files that nnU-Net and our bundles take, or it is said why not."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from nnunet_plugins.networks.weights import fit
from pretrain.blueprint import NETWORKS, Blueprint
from pretrain.export import (
    nnunet_weights,
    read_pretrained,
    trainer_of,
    write_bundle,
    write_nnunet,
)
from pretrain.mambamim import MambaMIM
from pretrain.plan import read_plan
from pretrain.run_folder import RunFolder

CT = {"percentile_00_5": -900.0, "percentile_99_5": 300.0, "mean": -50.0, "std": 200.0}


def plans_file(folder, stages=3, scheme="ZScoreNormalization", **changes):
    strides = [[1, 1, 1], *[[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]][: stages - 1]]
    entry = {
        "patch_size": [16, 32, 32],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": [scheme],
        "architecture": {"arch_kwargs": {"strides": strides, "kernel_sizes": [[3] * 3] * stages}},
    }
    plans = {
        "configurations": {
            "3d_fullres": entry,
            "larger": {"inherits_from": "3d_fullres", "patch_size": [32, 32, 32]},
            "2d": entry | {"patch_size": [32, 32]},
        },
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": CT},
    } | changes
    path = folder / "nnUNetPlans.json"
    path.write_text(json.dumps(plans))
    return path


@pytest.fixture
def plan(tmp_path):
    return read_plan(plans_file(tmp_path))


@pytest.fixture
def pretrained(tmp_path, plan):
    """What the engine leaves of a run on the plan's stages."""
    blueprint = Blueprint.named("hymamba_small", 1, plan)
    objective = MambaMIM(blueprint.build())
    run = RunFolder(tmp_path / "run", {"settings": {}, "run": {}})
    run.start({})
    metadata = {"objective": "mambamim", "network": blueprint.plain(), "epoch": 3}
    run.save_weights("best", objective.network, metadata)
    return read_pretrained(run.folder)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_blueprint_travels_as_json(name, tmp_path):
    plan = read_plan(plans_file(tmp_path)) if "vanilla" not in name else None
    blueprint = Blueprint.named(name, 2, plan, scan_order="hilbert", bidirectional=False)
    again = Blueprint(**json.loads(json.dumps(blueprint.plain())))
    with torch.device("meta"):
        report = fit(again.build(), blueprint.build().state_dict())
    assert report.complete


def test_the_file_for_nnunet_holds_every_weight_of_its_network(pretrained, plan, tmp_path):
    from nnunet_plugins.trainers.HyMambaTrainer_small import HyMambaTrainer_small

    file = tmp_path / "out" / "nnunet.pth"
    origin = write_nnunet(pretrained, plan, file)
    assert {n for n, whence in origin.items() if whence == "pretrained"} == set(pretrained.weights)
    content = torch.load(file, weights_only=True)
    weights = content["network_weights"]
    arguments = HyMambaTrainer_small.network_arguments(
        {"strides": plan.strides, "kernel_sizes": plan.kernel_sizes}
    )
    network = HyMambaTrainer_small.network_class(1, 5, deep_supervision=True, **arguments)
    report = fit(network, weights)
    assert not report.missing
    assert not report.unexpected
    assert all(".seg_layers." in name for name in report.misshapen)
    for name, x in pretrained.weights.items():
        assert torch.equal(weights[name], x)
    encoder = {name for name in network.state_dict() if name.startswith("encoder.")}
    assert set(pretrained.weights) == encoder
    assert content["mambamed"]["epoch"] == 3


def test_another_patch_of_the_same_stages_fits(pretrained, tmp_path):
    larger = read_plan(plans_file(tmp_path), "larger")
    assert larger.patch == (32, 32, 32)
    assert nnunet_weights(pretrained, larger)


def test_the_seed_decides_what_is_new(pretrained, plan):
    first, again, other = (nnunet_weights(pretrained, plan, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def test_plans_of_other_channels_or_strides_are_refused(pretrained, plan, tmp_path):
    isotropic = replace(plan, strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]])
    two = replace(plan, normalizations=["ZScoreNormalization"] * 2)
    for other in (isotropic, two):
        with pytest.raises(ValueError, match="Pretrain with --plans"):
            write_nnunet(pretrained, other, tmp_path / "nnunet.pth")


@pytest.mark.parametrize(
    ("name", "options", "trainer"),
    [
        ("hymamba", {}, "HyMambaTrainer"),
        ("hymamba_small", {"scan_order": "hilbert"}, "HyMambaTrainer_small_hilbert"),
        ("hymamba_small", {"bidirectional": False}, "HyMambaTrainer_small_unidirectional"),
        ("vanilla_mamba", {}, None),
    ],
)
def test_the_trainer_that_builds_the_same_network(name, options, trainer):
    from nnunet_plugins.registry import find_class

    assert trainer_of(Blueprint.named(name, 1, None, **options)) == trainer
    assert trainer is None or find_class(trainer) is not None


def test_damaged_values_are_refused(pretrained, tmp_path):
    name = next(iter(pretrained.weights))
    pretrained.weights[name].flatten()[0] = float("nan")
    (tmp_path / "configs").mkdir()
    header = {"mambamed": json.dumps(pretrained.metadata)}
    save_file(pretrained.weights, tmp_path / "best.safetensors", header)
    with pytest.raises(ValueError, match="values that are not finite"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize("stages", [2, 4, 5])
def test_plans_of_other_stages_are_refused(pretrained, tmp_path, stages):
    other = read_plan(plans_file(tmp_path, stages))
    with pytest.raises(ValueError, match=f"has {stages} stages .* pretrained were 3 stages"):
        write_nnunet(pretrained, other, tmp_path / "nnunet.pth")
    assert not (tmp_path / "nnunet.pth").exists()


@pytest.mark.parametrize(
    ("scheme", "kind"), [("ZScoreNormalization", "zscore"), ("CTNormalization", "standard")]
)
def test_a_plan_says_how_images_are_prepared(tmp_path, scheme, kind):
    preparation = read_plan(plans_file(tmp_path, scheme=scheme)).preparation()
    assert preparation.intensity["kind"] == kind
    assert preparation.spacing == (3.0, 1.0, 1.0)
    assert preparation.orientation is None


@pytest.mark.parametrize(
    ("configuration", "changes", "message"),
    [
        ("3d_lowres", {}, "no plans file of nnU-Net with a configuration '3d_lowres'"),
        ("2d", {}, "plans 2-D patches"),
        ("3d_fullres", {"transpose_forward": [1, 0, 2]}, r"axes in the order \[1, 0, 2\]"),
    ],
)
def test_plans_that_do_not_do(tmp_path, configuration, changes, message):
    with pytest.raises(ValueError, match=message):
        read_plan(plans_file(tmp_path, **changes), configuration)


def test_files_that_are_no_plans(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="is no plans file"):
        read_plan(tmp_path / "x.json")


def test_weights_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the folder of a pretraining run"):
        read_pretrained(tmp_path)
    (tmp_path / "best.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="damaged or was not written by python -m pretrain"):
        read_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "best.safetensors")
    with pytest.raises(ValueError, match="was not written by python -m pretrain"):
        read_pretrained(tmp_path / "best.safetensors")


def test_a_bundle_gets_the_weights_and_where_they_come_from(pretrained, tmp_path):
    bundle = tmp_path / "bundle"
    with pytest.raises(FileNotFoundError, match="is no bundle that can be trained"):
        write_bundle(pretrained, bundle)
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs/train.json").write_text("{}")
    with pytest.raises(ValueError, match="defines no network of ours"):
        write_bundle(pretrained, bundle)
    network = {"_target_": "nnunet_plugins.networks.HyMamba", "num_classes": 4}
    other = pretrained.blueprint.arguments | {"features_per_stage": [8, 8, 8]}
    for arguments in (other, pretrained.blueprint.arguments):
        config = {"network_def": network | {"input_channels": 1} | arguments}
        (bundle / "configs/train.json").write_text(json.dumps(config))
        if arguments is other:
            with pytest.raises(ValueError, match="is not what was pretrained"):
                write_bundle(pretrained, bundle)
            assert not (bundle / "models/pretrained.safetensors").exists()
    again = read_pretrained(write_bundle(pretrained, bundle))
    assert again.metadata == pretrained.metadata
    assert all(torch.equal(again.weights[name], x) for name, x in pretrained.weights.items())

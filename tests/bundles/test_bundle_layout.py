"""The bundles in the repository: what MONAI's tools ask of one."""

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow, verify_net_in_out

ROOT = Path(__file__).parents[2]
BUNDLES = ("hymamba", "vivim", "endomamba", "endomamba_classification", "endomamba_phase")
DATA = {
    "hymamba": ("images", "raw_dataset"),
    "vivim": (None, "raw_videos"),
    "endomamba": (None, "raw_videos"),
    "endomamba_classification": ("labelled_videos", "label_table"),
    "endomamba_phase": ("labelled_videos", "phase_table"),
}
"""Fixtures of what is predicted, the bundle's own videos if None, and of what is trained on."""
WORKFLOWS = ("inference.json", "evaluate.json", "train.json", "multi_gpu_train.json")

MONAI_COMPONENTS = {
    "AsDiscreted", "CacheDataset", "CheckpointLoader", "Compose", "DataLoader", "Dataset",
    "DiceCELoss", "DistributedSampler", "EnsureTyped", "LrScheduleHandler", "MeanDice",
    "SimpleInferer", "StatsHandler", "SupervisedEvaluator", "SupervisedTrainer",
    "TensorBoardStatsHandler", "ValidationHandler",
}  # fmt: skip
TARGETS = (
    "nnunet_plugins.bundle.", "nnunet_plugins.networks.", "nnunet_plugins.optimization.",
    "ignite.handlers.", "monai.handlers.", "monai.utils.", "torch.optim.",
)  # fmt: skip
EXPRESSIONS = {
    "$import torch",
    "$@network_def.to(@device)",
    "$@loss.to(@device)",
    "$@num_workers > 0",
    "$len(@classes)",
    "$@plan.configuration.batch_dice",
    "$@plan.configuration.batch_size",
    *(f"$@bundle_root + '/{part}'" for part in
      ("images", "videos", "predictions", "dataset", "models", "models/model.pt", "runs", "eval")),
}  # fmt: skip
"""Every expression there is: they join and look up, and neither read nor write."""


@pytest.fixture(params=BUNDLES)
def bundle(request) -> Path:
    return ROOT / "bundles" / request.param


def values(node, key=None):
    """Every (key, value) of a configuration."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in items:
        if isinstance(value, dict | list):
            yield from values(value)
        else:
            yield name, value


@pytest.mark.parametrize("name", WORKFLOWS)
def test_configurations_call_only_what_is_listed(bundle, name):
    for key, value in values(json.loads((bundle / "configs" / name).read_text())):
        if key == "_target_":
            assert value in MONAI_COMPONENTS or value.startswith(TARGETS), value
        elif isinstance(value, str) and "$" in value:
            assert value in EXPRESSIONS, value


def test_the_folder_is_laid_out_as_monai_asks(bundle):
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"):
        assert (bundle / name).stat().st_size > 0
    assert not list(bundle.rglob("*.py"))
    assert "Apache License" in (bundle / "LICENSE").read_text()


def test_metadata_has_what_the_zoo_checks(bundle):
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    required = {
        "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version",
        "required_packages_version", "task", "description", "authors", "copyright",
        "network_data_format",
    }  # fmt: skip
    assert required <= set(metadata)
    assert metadata["schema"].endswith("meta_schema_20240725.json")
    assert metadata["version"] in metadata["changelog"]
    for part, name in (("inputs", "image"), ("outputs", "pred")):
        tensor = metadata["network_data_format"][part][name]
        assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"} <= set(
            tensor
        )
        assert len(tensor["channel_def"]) == tensor["num_channels"]


def test_the_network_takes_and_gives_what_metadata_says(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
        device="cpu",
        bundle_root=str(bundle),
    )


def test_training_and_inference_build_the_same_network(bundle):
    inference, train = (
        json.loads((bundle / "configs" / name).read_text())["network_def"]
        for name in ("inference.json", "train.json")
    )
    assert inference == train


@pytest.mark.parametrize(("name", "kind"), [("inference.json", "infer"), ("train.json", "train")])
def test_other_programs_find_the_keys_they_read(bundle, name, kind, request, tmp_path):
    fixture = DATA[bundle.name][kind == "train"]
    data = request.getfixturevalue(fixture) if fixture else bundle / "videos"
    workflow = ConfigWorkflow(
        str(bundle / "configs" / name), logging_file=False, workflow_type=kind,
        bundle_root=str(bundle), dataset_dir=str(data), initialize=[],
        output_dir=str(tmp_path), ckpt_dir=str(tmp_path),
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []
    assert set(workflow.properties) - {
        "train_key_metric",
        "train_postprocessing",
        "key_metric",
    } <= {key for key in workflow.properties if getattr(workflow, key) is not None}

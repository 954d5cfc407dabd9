"""The bundle's own training: it learns, stops, goes on, starts from other weights, evaluates."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nnunet_plugins.bundle.export import export_bundle


@pytest.fixture
def bundle(make_results, tmp_path) -> Path:
    return export_bundle(make_results(), tmp_path / "bundle")


@pytest.fixture
def train(bundle, raw_dataset, run_bundle, tmp_path):
    """Run train.json for so many epochs; the sentence that it ends with, if any."""

    def run(epochs: int, **options) -> str:
        options = {"ckpt_dir": tmp_path / "weights", **options}
        return run_bundle(
            bundle / "configs/train.json", bundle_root=bundle, dataset_dir=raw_dataset,
            output_dir=tmp_path / "runs", epochs=epochs, warmup=0, val_interval=1, **options,
        )  # fmt: skip

    return run


def last(folder: Path) -> dict:
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)


def test_training_stops_goes_on_and_never_writes_over_other_weights(train, bundle, tmp_path):
    weights = tmp_path / "weights"
    assert train(1) == ""
    first = last(weights)
    assert first["epoch"] == 1
    assert (weights / "model.pt").is_file()
    assert list((tmp_path / "runs").glob("events*"))

    assert "--resume" in train(1)
    assert "has all 1 epochs" in train(1, resume=True)
    assert "no" in train(2, resume=True, ckpt_dir=tmp_path / "nowhere")
    served = (bundle / "models/model.pt").read_bytes()
    assert "would replace it" in train(1, ckpt_dir=bundle / "models")
    assert (bundle / "models/model.pt").read_bytes() == served
    assert last(weights)["epoch"] == 1

    assert train(2, resume=True) == ""
    second = last(weights)
    assert second["epoch"] == 2
    assert any(not torch.equal(second["model"][n], w) for n, w in first["model"].items())


def test_pretrained_weights_are_taken_over_but_for_heads(train, bundle, tmp_path, caplog):
    given = torch.load(bundle / "models/model.pt", weights_only=True)
    body = {n: w.contiguous() for n, w in given.items() if not n.startswith("decoder.seg_layers.")}
    missing = next(name for name in body if name.startswith("decoder."))
    del body[missing]
    save_file({**body, "strange": torch.zeros(1)}, tmp_path / "body.safetensors")
    said = train(1, pretrained=tmp_path / "body.safetensors", learning_rate=0, weight_decay=0)
    assert said == ""
    kept = last(tmp_path / "weights")["model"]
    assert all(torch.equal(kept[name], tensor) for name, tensor in body.items())
    assert not torch.equal(
        kept["decoder.seg_layers.0.weight"], given["decoder.seg_layers.0.weight"]
    )
    assert f"1 missing: {missing}" in caplog.text
    assert "1 unexpected: strange" in caplog.text


def test_weights_of_which_nothing_fits_are_refused(train, tmp_path):
    torch.save({"strange": torch.zeros(1)}, tmp_path / "strange.pt")
    assert "nothing of" in train(1, pretrained=tmp_path / "strange.pt")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"fold": 7}, "no fold 7"), ({"dataset_dir": "nowhere"}, "no dataset.json")],
    ids=["fold", "dataset"],
)
def test_data_that_cannot_be_trained_on_are_refused(
    bundle, raw_dataset, run_bundle, options, words
):
    options = {"dataset_dir": raw_dataset, **options}
    assert words in run_bundle(bundle / "configs/train.json", bundle_root=bundle, **options)


def test_evaluation_writes_the_dice_of_every_case_and_class(
    bundle, raw_dataset, run_bundle, tmp_path
):
    folds = [{"train": ["case_0"], "val": ["case_1", "case_3"]}]
    (raw_dataset / "splits_final.json").write_text(json.dumps(folds))
    configs = bundle / "configs"
    said = run_bundle(
        configs / "inference.json", configs / "evaluate.json", bundle_root=bundle,
        dataset_dir=raw_dataset, output_dir=tmp_path / "eval", mirror_axes=[],
    )  # fmt: skip
    assert said == ""
    rows = list(csv.reader((tmp_path / "eval/dice.csv").open()))
    assert rows[0] == ["case", "shell", "core"]
    assert [row[0] for row in rows[1:]] == ["case_1", "case_3", "mean"]
    scores = [[float(score) for score in row[1:]] for row in rows[1:]]
    assert all(0 <= score <= 1 for row in scores for score in row)
    assert scores[2] == pytest.approx(
        [(a + b) / 2 for a, b in zip(*scores[:2], strict=True)], abs=1e-6
    )
    assert sum(scores[2]) > 0

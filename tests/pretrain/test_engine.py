"""What a run leaves behind, and what training does with the numbers."""

import csv
import json
import math

import pytest
import torch
from safetensors import safe_open

from pretrain.engine import MOST_SKIPPED, pretrain
from pretrain.training_step import TrainingStep
from tests.pretrain.runs import events
from tests.pretrain.toys import Toy, ToySamples, draw, small


def run(folder, objective=None, samples=None, draw=None, resume=False, config=None, **settings):
    objective = objective or Toy()
    rows = pretrain(
        objective,
        samples or ToySamples(),
        folder,
        small(**settings),
        draw=draw,
        resume=resume,
        config=config,
        metadata={"class": "Toy", "arguments": {"width": 16}},
    )
    return rows, objective.state_dict()


def assert_same(weights, others):
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(("every", "drawn"), [(0, []), (2, [2, 4]), (3, [3, 4]), (9, [4])])
def test_pictures_come_every_so_many_epochs_and_at_the_end(every, drawn, tmp_path):
    run(tmp_path, draw=draw, picture_every=every)
    found = sorted(path.name for path in tmp_path.glob("pictures/*"))
    assert found == [f"epoch_{epoch:04d}.png" for epoch in drawn]


def test_a_run_leaves_all_its_files(tmp_path, capsys):
    folder = tmp_path / "deep" / "run"
    rows, _ = run(folder, draw=draw, picture_every=2, config={"data": "toys"})
    names = {"config.json", "checkpoint_last.pt", "last.safetensors", "best.safetensors"}
    names |= {"log.csv", "loss.png", "tensorboard", "pictures"}
    assert {path.name for path in folder.iterdir()} == names
    assert [p.name for p in sorted((folder / "pictures").iterdir())] == [
        "epoch_0002.png",
        "epoch_0004.png",
    ]
    record = json.loads((folder / "config.json").read_text())
    assert record["settings"] == small(picture_every=2).to_dict()
    assert record["run"] == {"data": "toys"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["command"]
    log = list(csv.DictReader((folder / "log.csv").open()))
    assert [{name: float(value) for name, value in row.items()} for row in log] == rows
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] < rows[0]["loss"]
    for row in rows:
        parts = row["squared"] + 0.1 * row["absolute"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
    losses = events(folder, "loss")
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    assert losses[-1][1] == pytest.approx(rows[-1]["loss"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 4


def test_the_pictures_show_the_same_samples(tmp_path):
    run(tmp_path, draw=draw, picture_every=1)
    first, *others = [path.read_bytes() for path in sorted((tmp_path / "pictures").iterdir())]
    assert len(others) == 3
    assert all(other == first for other in others)


def test_the_pictures_hide_the_same_numbers():
    step = TrainingStep(Toy(), small())
    batch = {"image": torch.randn(4, 6)}
    first = step.evaluate(batch).loss
    torch.rand(5)
    assert torch.equal(step.evaluate(batch).loss, first)


def test_pictures_change_nothing(tmp_path):
    seen = []

    def look(output, batch, path):
        seen.append(output.loss.requires_grad)
        draw(output, batch, path)

    toys = [Toy(), Toy()]
    for toy in toys:
        toy.network.append(torch.nn.Dropout(0.5))
    _, drawn = run(tmp_path / "a", toys[0], draw=look, picture_every=1)
    _, plain = run(tmp_path / "b", toys[1])
    assert seen == [False] * 4
    assert_same(drawn, plain)


class Growing(ToySamples):
    """Easiest in the second epoch."""

    def __getitem__(self, index):
        return {"image": super().__getitem__(index)["image"] * (1 + abs(self.epoch - 1))}


def test_the_weights_are_the_networks_with_their_description(tmp_path):
    rows, weights = run(tmp_path, samples=Growing())
    for name in ("last", "best"):
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            about = json.loads(file.metadata()["mambamed"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        assert about["class"] == "Toy"
        assert about["arguments"] == {"width": 16}
        assert about["loss"] == rows[int(about["epoch"]) - 1]["loss"]
    assert tensors.keys() == Toy().network.state_dict().keys()
    assert about["epoch"] == 2
    assert about["loss"] == min(row["loss"] for row in rows)
    with safe_open(tmp_path / "last.safetensors", "pt") as file:
        assert_same(
            {f"network.{key}": file.get_tensor(key) for key in file.keys()},  # noqa: SIM118
            {key: value for key, value in weights.items() if key.startswith("network.")},
        )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_parts_and_workers_change_no_weights(tmp_path, accumulate, workers):
    rows, whole = run(tmp_path / "a", Toy(hides=False), epochs=2)
    part_rows, parts = run(
        tmp_path / "b", Toy(hides=False), epochs=2, accumulate=accumulate, workers=workers
    )
    assert [row["loss"] for row in part_rows] == pytest.approx([row["loss"] for row in rows])
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-5)


def test_bf16_runs_the_objective_in_bf16(tmp_path):
    kinds = []
    toy = Toy()
    toy.head.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    run(tmp_path, toy, epochs=1, precision="bf16")
    assert set(kinds) == {torch.bfloat16}
    assert {weight.dtype for weight in toy.parameters()} == {torch.float32}


def test_bf16_is_warned_of_where_it_may_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    with pytest.warns(UserWarning, match="take precision no"):
        run(tmp_path, epochs=1, precision="bf16")


def test_fp16_and_devices_that_are_not_here_are_refused(tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        run(tmp_path, precision="fp16")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is cuda, but this machine has"):
            run(tmp_path, device="cuda")
    assert list(tmp_path.iterdir()) == []


def test_rates_are_functions_of_the_step_and_reach_their_groups():
    settings = small(final_lr=0.1, weight_decay=0.05, final_weight_decay=0.5, warmup=0.0)
    step = TrainingStep(Toy(), settings)
    batches = iter([{"image": torch.randn(4, 6)}])
    step(batches, epoch=3, step=5, steps=6)
    assert step.rates(23, 24) == {"lr": pytest.approx(1e-3), "weight_decay": pytest.approx(0.5)}
    decaying, staying = step.optimizer.param_groups
    assert decaying["lr"] == staying["lr"] == pytest.approx(1e-3)
    assert decaying["weight_decay"] == pytest.approx(0.5)
    assert staying["weight_decay"] == 0
    assert all(weight.ndim == 1 for weight in staying["params"])


def test_the_gradient_is_clipped():
    toy = Toy(hides=False)
    step = TrainingStep(toy, small(clip=1e-3))
    norms = []
    step.optimizer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: norms.append(
            torch.stack([w.grad.norm() for w in toy.parameters()]).norm().item()
        )
    )
    step(iter([{"image": torch.randn(4, 6)}]), epoch=0, step=0, steps=6)
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    rows, weights = run(tmp_path, samples=ToySamples(poison=(1,)))
    assert [row["skipped"] for row in rows] == [0, 6, 0, 0]
    assert [math.isnan(row["loss"]) for row in rows] == [False, True, False, False]
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_a_skipped_step_leaves_weights_and_optimiser():
    toy = Toy()
    step = TrainingStep(toy, small())
    batches = iter([{"image": torch.randn(4, 6)}, {"image": torch.full((4, 6), math.inf)}])
    assert step(batches, epoch=0, step=0, steps=6).taken
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    assert not step(batches, epoch=0, step=1, steps=6).taken
    assert_same(toy.state_dict(), before)
    assert {int(s["step"]) for s in step.optimizer.state_dict()["state"].values()} == {1}


def test_endless_bad_steps_end_the_run_and_keep_the_checkpoint(tmp_path):
    samples = ToySamples(poison=tuple(range(2, 10)))
    with pytest.raises(FloatingPointError, match=rf"{MOST_SKIPPED} steps in a row.*checkpoint"):
        run(tmp_path, samples=samples, epochs=10)
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())
    assert state["progress"]["rows"][1]["skipped"] == 0

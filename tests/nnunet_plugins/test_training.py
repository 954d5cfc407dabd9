"""A trainer in this process: repeatable, exact after a resume, and clear about what it refuses."""

import contextlib
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

TRAINER = "HyMambaTrainer_small_3epochs_2iterations"


def short(trainer):
    """Fewer validation batches; the curve is what is compared."""
    trainer.num_val_iterations_per_epoch = 1
    return trainer


def curve(trainer, losses: str = "train_losses") -> list[float]:
    return [float(trainer.logger.get_value(losses, step=e)) for e in range(trainer.current_epoch)]


def trained(trainer):
    short(trainer).run_training()
    return trainer


def test_the_same_seed_gives_the_same_curve_and_another_seed_another(build_trainer):
    first, second = trained(build_trainer(TRAINER)), trained(build_trainer(TRAINER))
    other = trained(build_trainer(f"{TRAINER}_seed1"))
    assert curve(first) == curve(second) != curve(other)
    assert curve(first, "val_losses") == curve(second, "val_losses")


def test_a_resumed_training_continues_the_same_curve(build_trainer, monkeypatch):
    whole = trained(build_trainer(TRAINER))
    killed = short(build_trainer(TRAINER))
    start = killed.on_epoch_start

    def die_in_the_last_epoch():
        if killed.current_epoch == 2:
            raise KeyboardInterrupt
        start()

    monkeypatch.setattr(killed, "on_epoch_start", die_in_the_last_epoch)
    with pytest.raises(KeyboardInterrupt):
        killed.run_training()
    resumed = build_trainer(TRAINER)
    resumed.load_checkpoint(f"{killed.output_folder}/checkpoint_latest.pth")
    assert resumed.current_epoch == 2
    assert curve(trained(resumed)) == curve(whole)
    assert curve(resumed, "val_losses") == curve(whole, "val_losses")


def batch_of(trainer, fill: float | None = None) -> dict:
    channels, patch = trainer.num_input_channels, trainer.configuration_manager.patch_size
    data = torch.randn(2, channels, *patch)
    if fill is not None:
        data[1, 0, 0, 0, 0] = fill
    scales = torch.tensor(trainer._get_deep_supervision_scales())
    grids = (scales * torch.tensor(patch)).int().tolist()
    target = [torch.randint(0, 3, (2, 1, *grid)).float() for grid in grids]
    return {"data": data, "target": target, "keys": ["case_3", "case_1"]}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_voxels_are_refused_by_case_and_leave_the_weights_alone(build_trainer, value):
    trainer = build_trainer(TRAINER)
    before = {name: x.clone() for name, x in trainer.network.state_dict().items()}
    with pytest.raises(ValueError, match=r"NaN or infinite voxels.*mambamed check.*case_1"):
        trainer.train_step(batch_of(trainer, value))
    assert all(torch.equal(x, before[n]) for n, x in trainer.network.state_dict().items())
    assert np.isfinite(trainer.train_step(batch_of(trainer))["loss"])


def test_a_step_with_an_endless_gradient_is_skipped(build_trainer):
    trainer = build_trainer(TRAINER)
    before = {name: x.clone() for name, x in trainer.network.state_dict().items()}
    trainer.network.decoder.refine.conv1.weight.register_hook(lambda grad: grad * np.inf)
    trainer.train_step(batch_of(trainer))
    assert all(torch.equal(x, before[n]) for n, x in trainer.network.state_dict().items())


@contextlib.contextmanager
def largest_file(size: int):
    """Writes beyond `size` bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_no_checkpoint(build_trainer, tmp_path, capsys):
    trainer = build_trainer(TRAINER)
    latest, final = tmp_path / "checkpoint_latest.pth", tmp_path / "checkpoint_final.pth"
    trainer.save_checkpoint(str(latest))
    before = latest.read_bytes()
    with largest_file(len(before) // 2):
        trainer.save_checkpoint(str(latest))
        with pytest.raises(
            OSError, match=r"could not write .*final.*run the same command with --c"
        ):
            trainer.save_checkpoint(str(final))
    assert "files saved before are whole" in capsys.readouterr().out
    assert latest.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == [latest.name]
    torch.load(latest, weights_only=False)


def test_only_the_first_process_writes_checkpoints(build_trainer, tmp_path):
    trainer = build_trainer(TRAINER)
    final, partial = tmp_path / "checkpoint_final.pth", tmp_path / "checkpoint_final.pth.partial"
    final.write_text("whole")
    partial.write_text("half written by the first process, or left by a kill -9")
    trainer.local_rank = 1
    trainer.save_checkpoint(str(final))
    trainer.local_rank, trainer.disable_checkpointing = 0, True
    trainer.save_checkpoint(str(final))
    assert final.read_text() == "whole"


def test_a_progress_picture_that_cannot_be_written_does_not_end_the_training(
    build_trainer, monkeypatch, capsys
):
    trainer = build_trainer(TRAINER)

    def fail(folder):
        raise OSError("No space left on device")

    monkeypatch.setattr(trainer.logger, "plot_progress_png", fail)
    assert len(curve(trained(trainer))) == 3
    assert "could not write the progress picture: No space left" in capsys.readouterr().out


def test_a_checkpoint_of_another_network_is_refused_in_one_sentence(build_trainer, tmp_path):
    build_trainer(f"{TRAINER}_unidirectional").save_checkpoint(str(tmp_path / "other.pth"))
    with pytest.raises(RuntimeError, match=r"not of this HyMamba: \d+ tensors fit") as error:
        build_trainer(TRAINER).load_checkpoint(str(tmp_path / "other.pth"))
    assert "\n" not in str(error.value)


def test_the_small_variant_is_small_on_shallow_and_deep_plans(build_trainer):
    trainer = build_trainer(TRAINER)
    for stages in (4, 5, 6):
        halvings = [[1] * 3, *[[2] * 3] * (stages - 1)]
        plan = {"strides": halvings, "kernel_sizes": [[3] * 3] * stages}
        network = trainer.network_class(1, 3, **trainer.network_arguments(plan))
        assert 1.1e6 <= sum(p.numel() for p in network.parameters()) <= 3.5e6
    assert trainer.configuration_manager.batch_size <= 2


def test_plans_whose_patch_cannot_be_halved_are_refused(build_trainer, nnunet):
    plans = json.loads((nnunet.preprocessed / "nnUNetPlans.json").read_text())
    stages = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    stages["strides"], stages["kernel_sizes"] = [[1, 1, 1]], [[3, 3, 3]]
    with pytest.raises(ValueError, match="use a patch that can be halved at least once"):
        build_trainer(TRAINER, plans)


def test_a_compiled_network_trains(build_trainer):
    trainer = build_trainer(TRAINER)
    batch = batch_of(trainer)
    expected = trainer.network(batch["data"])[0].detach()
    trainer.network = torch.compile(trainer.network, backend="eager")
    torch.testing.assert_close(trainer.network(batch["data"])[0], expected)
    before = trainer.network.state_dict()["_orig_mod.encoder.stem.0.weight"].clone()
    trainer.train_step(batch)
    assert not torch.equal(trainer.network.state_dict()["_orig_mod.encoder.stem.0.weight"], before)


@pytest.mark.parametrize("cases", [1, 3])
def test_fewer_cases_than_folds_are_split_one_by_one(build_trainer, nnunet, tmp_path, cases):
    trainer = build_trainer(TRAINER)
    data = Path(trainer.preprocessed_dataset_folder)
    few = tmp_path / "few" / data.name
    few.mkdir(parents=True)
    for file in data.iterdir():
        if any(file.name.startswith(f"case_{i}") for i in range(cases)):
            shutil.copy(file, few)
    trainer.preprocessed_dataset_folder, trainer.preprocessed_dataset_folder_base = (
        str(few), str(few.parent),
    )  # fmt: skip
    if cases == 1:
        with pytest.raises(ValueError, match="case_0 is the only case; train the fold called all"):
            trainer.do_split()
        return
    assert trainer.do_split() == (["case_1", "case_2"], ["case_0"])
    assert len(json.loads((few.parent / "splits_final.json").read_text())) == 3

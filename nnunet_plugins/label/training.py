"""A training round: a bundle's own training on labelled studies, then candidate against served."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import SimpleITK as sitk
import torch
from filelock import FileLock, Timeout
from torch import nn

from nnunet_plugins.bundle.command import MENDABLE, first_cause
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.bundle.training import read_weights
from nnunet_plugins.label.held_out import split_studies
from nnunet_plugins.label.names import is_video
from nnunet_plugins.label.scores import dice, mean_dice, read_labels, verdict
from nnunet_plugins.label.served import ServedBundle, channel_files
from nnunet_plugins.label.shelf import Shelf
from nnunet_plugins.label.video.labelled import labelled_clips, labelled_runs
from nnunet_plugins.label.video.prompts import UNLABELLED

FINE_TUNING = 0.1
"""Learning rate of a round that starts from served weights, in that of the configuration."""


@dataclass(frozen=True)
class LabelledStudy:
    """A study with a label that a person has finished."""

    name: str
    image: Path
    label: Path
    patient: str | None = None
    """Whose it is, if that is known."""


@dataclass(frozen=True)
class Round:
    """What a client may choose of a training round."""

    epochs: int = 5
    learning_rate: float | None = None
    """A tenth of the configuration's if None, or all of it without served weights."""


def train_candidate(
    bundle: ServedBundle,
    shelf: Shelf,
    studies: Sequence[LabelledStudy],
    wanted: Round,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train from the served weights, score candidate and served, keep the candidate and its report.

    What is served does not change. A round that was killed goes on after its last epoch when it is
    asked for again with the same studies, labels and options.

    Raises:
        ValueError: If there are too few studies, one cannot be read or has a label of another task,
            or a training is running.
    """
    fitting = {s.name: s for s in studies if is_video(s.image) == bundle.of_videos}
    for study in fitting.values():
        _check_values(study, bundle.plan)
    shelf.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(shelf.folder / ".training", timeout=0):
            patients = {name: study.patient for name, study in fitting.items()}
            parts = split_studies(patients, shelf.folder / "studies.json")
            train, held = parts.train, parts.held_out
            say(f"training {bundle.name} on {len(train)} studies, {len(held)} are held out")
            say(parts.sentence)
            served = shelf.served
            weights = _train(bundle, shelf, [fitting[name] for name in train], served, wanted)
            report = _compare(bundle, [fitting[name] for name in held], weights, served)
            report |= {
                "model": bundle.name,
                "epochs": wanted.epochs,
                "trained_on": train,
                "held_out": held,
                "patients": parts.sentence,
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            if bundle.of_videos:
                report["labelled_frames"] = {
                    part: _labelled_frames(fitting[name] for name in report[part])
                    for part in ("trained_on", "held_out")
                }
            shelf.put_candidate(read_weights(weights), report)
            shutil.rmtree(shelf.folder / "training")
    except Timeout as error:
        raise ValueError(f"a training of {bundle.name} is running; wait for its end") from error
    say(report["verdict"])
    return report


def with_weights(network: nn.Module, path: str) -> nn.Module:
    """A network that starts from weights, all of them; what the configuration of a round names."""
    network.load_state_dict(read_weights(Path(path)))
    return network


def _train(
    bundle: ServedBundle,
    shelf: Shelf,
    studies: Sequence[LabelledStudy],
    served: Path | None,
    wanted: Round,
) -> Path:
    """Weights after the last epoch. Nothing is chosen by the held-out studies."""
    key = _key(bundle, studies, served, wanted)
    folder = shelf.folder / "training" / key
    for other in (shelf.folder / "training").glob("*"):
        if other != folder:
            shutil.rmtree(other)
    _write_dataset(folder / "dataset", studies, bundle.plan)
    last = folder / "models" / "checkpoint_last.pt"
    done = last.is_file() and _saved(last)["epoch"] >= wanted.epochs
    if not done:
        _run(bundle, folder, served, wanted, resume=last.is_file())
    weights = folder / "model.pt"
    torch.save(_saved(last)["model"], weights)
    return weights


def _run(
    bundle: ServedBundle, folder: Path, served: Path | None, wanted: Round, resume: bool
) -> None:
    """The bundle's `configs/train.json`, with the studies as its dataset."""
    file = bundle.folder / "configs" / "train.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    rate = wanted.learning_rate or config["learning_rate"] * (FINE_TUNING if served else 1)
    options: dict[str, Any] = {
        "bundle_root": str(bundle.folder),
        "dataset_dir": str(folder / "dataset"),
        "ckpt_dir": str(folder / "models"),
        "output_dir": str(folder / "runs"),
        "fold": 0,
        "resume": resume,
        "epochs": wanted.epochs,
        "warmup": min(config["warmup"], wanted.epochs - 1),
        "val_interval": wanted.epochs + 1,  # the held-out studies score once, at the end
        "learning_rate": rate,
        "device": bundle.device,
    }
    if served is not None:
        options["network_def"] = {
            "_target_": "nnunet_plugins.label.training.with_weights",
            "network": config["network_def"],
            "path": str(served),
        }
    try:
        monai.bundle.run(config_file=str(file), logging_file=False, **options)
    except SystemExit as end:
        raise ValueError(str(end.code)) from end
    except MENDABLE as error:
        raise ValueError(str(first_cause(error))) from error


def _compare(
    bundle: ServedBundle, studies: Sequence[LabelledStudy], candidate: Path, served: Path | None
) -> dict[str, Any]:
    """Dice of candidate and served weights on held-out studies, through the whole prediction."""
    scores: dict[str, dict[str, Any]] = {}
    for part, weights in (("candidate", candidate), ("served", served)):
        if weights is not None:
            scores[part] = {s.name: _score(bundle, s, weights) for s in studies}
    means = {part: mean_dice(of_part.values()) for part, of_part in scores.items()}
    return {
        "dice": scores,
        "mean_dice": means,
        "better": _better(means),
        "verdict": verdict(means["candidate"], means.get("served")),
    }


def _better(means: Mapping[str, float | None]) -> bool | None:
    candidate, served = means["candidate"], means.get("served")
    return None if candidate is None or served is None else candidate > served


def _score(bundle: ServedBundle, study: LabelledStudy, weights: Path) -> dict[str, float | None]:
    with tempfile.TemporaryDirectory() as out:
        prediction = bundle.segment(study.image, Path(out) / "labels", weights)
        classes, of_video = bundle.plan.foreground, bundle.of_videos
        return dice(study.label, prediction.file, classes, of_video)


def _key(
    bundle: ServedBundle, studies: Sequence[LabelledStudy], served: Path | None, wanted: Round
) -> str:
    """What tells one round from another: names, sizes and times of all files, and the options."""
    files = [f for s in studies for f in (s.image, s.label)] + ([served] if served else [])
    facts = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    text = json.dumps([str(bundle.folder), facts, wanted.epochs, wanted.learning_rate])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_dataset(folder: Path, studies: Sequence[LabelledStudy], plan: Plan) -> None:
    """The studies as an nnU-Net raw dataset; of a video, its labelled frames."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    names: list[str] = []
    for number, study in enumerate(studies):
        name = f"study_{number:05d}"
        write = _write_clips if is_video(study.image) else _write_volume
        names += write(study, folder, name, plan)
    dataset = plan.dataset | {"numTraining": len(names)}
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    splits = [{"train": names, "val": names[:1]}]
    (folder / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")


def _check_values(study: LabelledStudy, plan: Plan) -> None:
    """A label of another task would end the training, or be learned as what it is not."""
    known = {
        v for values in plan.dataset["labels"].values() for v in np.atleast_1d(values).tolist()
    }
    labels = read_labels(study.label)
    if is_video(study.image) and not labelled_runs(labels):
        raise ValueError(
            f"no frame of the final label of {study.name} is labelled to its last pixel (pixels of "
            f"{UNLABELLED} are not); label one, or keep the label under another tag"
        )
    allowed = known | ({UNLABELLED} if is_video(study.image) else set())
    unknown = [f"{value:g}" for value in np.unique(labels).tolist() if value not in allowed]
    if unknown:
        raise ValueError(
            f"the final label of {study.name} has the value {unknown[0]}, which the network does "
            f"not know (it knows {', '.join(map(str, sorted(known)))}); correct the label, or keep "
            "studies of other tasks in a folder of their own"
        )


def _labelled_frames(studies: Iterable[LabelledStudy]) -> int:
    """Frames of videos that are labelled to their last pixel."""
    labels = (read_labels(study.label) for study in studies)
    return sum(end - start for label in labels for start, end in labelled_runs(label))


def _write_volume(study: LabelledStudy, folder: Path, name: str, plan: Plan) -> list[str]:
    """A volume and its label, linked where their format is the plan's; gives the case's name."""
    for index, file in enumerate(channel_files(study.image, plan)):
        _put(file, folder / "imagesTr" / f"{name}_{index:04d}{plan.file_ending}")
    _put(study.label, folder / "labelsTr" / f"{name}{plan.file_ending}")
    return [name]


def _put(file: Path, target: Path) -> None:
    if not file.name.lower().endswith(target.name.partition(".")[2]):
        sitk.WriteImage(sitk.ReadImage(str(file)), str(target))
        return
    try:
        os.link(file, target)
    except OSError:  # another file system
        shutil.copyfile(file, target)


def _write_clips(study: LabelledStudy, folder: Path, name: str, plan: Plan) -> list[str]:
    """Labelled runs of a video's frames as cases (t, h, w), as `mambamed dataset from-videos` does;
    gives their names."""
    names = []
    labels = read_labels(study.label)
    for number, clip in enumerate(labelled_clips(study.image, labels, plan.patch_size[0])):
        names.append(f"{name}_{number:04d}")
        corners = clip.frames[:, [0, -1], [0, -1]]
        clip.frames[:, [0, -1], [0, -1]] = np.maximum(corners, 1)  # nnU-Net crops what is zero
        for channel, values in enumerate(np.moveaxis(clip.frames, -1, 0)):
            stem = f"{names[-1]}_{channel:04d}"
            _write_array(values, folder / "imagesTr" / f"{stem}{plan.file_ending}")
        _write_array(clip.labels, folder / "labelsTr" / f"{names[-1]}{plan.file_ending}")
    return names


def _write_array(voxels: np.ndarray, file: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(voxels)), str(file))


def _saved(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)

"""MONAI Label's tasks around served bundles: infer, train, choose the next study, score."""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from nnunet_plugins.label.names import is_video
from nnunet_plugins.label.patients import Patients
from nnunet_plugins.label.scores import dice, mean_dice
from nnunet_plugins.label.served import ServedBundle
from nnunet_plugins.label.server.datastore import Studies
from nnunet_plugins.label.shelf import Shelf, digest
from nnunet_plugins.label.training import Round, train_candidate
from nnunet_plugins.label.turns import Turns

PREDICTED = "original"
"""Tag of labels that a network made."""
AT_ONCE = 4
"""Studies without a figure that one request for the most uncertain one may segment."""
SHOWN = 20
"""Names that one line of the log lists."""


class BundleInfer(InferTask):
    """Labels of a study by a bundle; nothing of a request but the study reaches the bundle.

    Args:
        bundle: What segments.
        shelf: Its weights.
        turns: The queue of the server.
        folder: For results on their way.
    """

    def __init__(self, bundle: ServedBundle, shelf: Shelf, turns: Turns, folder: Path) -> None:
        super().__init__(InferType.SEGMENTATION, bundle.labels, 3, bundle.description)
        self.bundle, self.shelf, self.turns, self.folder = bundle, shelf, turns, folder
        self.worker = ThreadPoolExecutor(1)  # each thread that computes keeps memory of its own

    def is_valid(self) -> bool:
        """Whether there are weights."""
        return self.shelf.served is not None

    def get_path(self, validate: bool = True) -> str | None:
        """File of the weights in use."""
        return str(self.shelf.served) if self.shelf.served else None

    def info(self) -> dict[str, Any]:
        """What clients are told of this model."""
        about = super().info()
        report = self.shelf.candidate_report()
        return about | {
            "kind": "video" if self.bundle.of_videos else "volume",
            "weights": digest(self.shelf.served) if self.shelf.served else None,
            "candidate": report["verdict"] if report else None,
        }

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The file of the labels, in a folder of its own, and facts for the client.

        A request that says `after_all` is computed when no other waits.

        Raises:
            ValueError: If the study cannot be segmented.
            TooMany: If too many requests wait.
        """
        study, asked = Path(request["image"]), time.monotonic()
        self.bundle.check(study)
        turn = self.turns.turn_after_all if request.get("after_all") else self.turns.turn
        with turn() as before:
            began, weights = time.monotonic(), self.shelf.served
            if weights is None:
                raise ValueError(f"{self.bundle.name} has no weights yet; train and promote some")
            used = digest(weights)
            self.folder.mkdir(parents=True, exist_ok=True)
            out = Path(tempfile.mkdtemp(dir=self.folder, prefix="infer_"))
            try:
                segmented = self.worker.submit(self.bundle.segment, study, out / "labels", weights)
                prediction = segmented.result()
            except BaseException:
                shutil.rmtree(out, ignore_errors=True)
                raise
        facts = {
            "label_names": self.labels,
            "uncertainty": round(prediction.uncertainty, 6),
            "weights": used,
            "waited_for": before,
            "latencies": {
                "waited": round(began - asked, 2),
                "total": round(time.monotonic() - began, 2),
            },
        }
        return str(prediction.file), facts


class BundleTrain(TrainTask):
    """A training round, whose outcome is a candidate.

    Args:
        bundle: What is trained.
        shelf: Its weights.
        patients: Whose the studies are.
    """

    def __init__(self, bundle: ServedBundle, shelf: Shelf, patients: Patients) -> None:
        super().__init__(
            f"Trains a candidate of {bundle.name}; what is served changes by POST /promote alone"
        )
        self.bundle, self.shelf, self.patients = bundle, shelf, patients

    def config(self) -> dict[str, Any]:
        """What a client may choose."""
        return {"max_epochs": Round.epochs}

    def stats(self) -> dict[str, Any]:
        """Reports of the candidate and of what is served."""
        reports = {
            "candidate": self.shelf.candidate_report(), "served": self.shelf.model_report()
        }  # fmt: skip
        return {part: report for part, report in reports.items() if report}

    def __call__(self, request: dict[str, Any], datastore: Studies) -> dict[str, Any]:
        """Train, score and keep the candidate; its report."""
        wanted = Round(request.get("max_epochs", Round.epochs), request.get("learning_rate"))
        labelled = datastore.labelled_studies()
        if strangers := self.patients.strangers(datastore.list_images()):
            print(
                f"{len(strangers)} names in tables of patients are no study of this folder: "
                f"{', '.join(strangers[:SHOWN])}"
            )
        whose = self.patients.of(study.name for study in labelled)
        studies = [replace(study, patient=whose[study.name]) for study in labelled]
        return train_candidate(self.bundle, self.shelf, studies, wanted)


class RandomStudy(Strategy):
    """Any study without a final label."""

    def __init__(self) -> None:
        super().__init__("A random study that nobody has labelled")

    def __call__(self, request: dict[str, Any], datastore: Studies) -> dict[str, Any] | None:
        """Its name."""
        names = list(datastore.open_studies())
        return {"id": random.choice(names)} if names else None


class UncertainStudy(Strategy):
    """The study without a final label of which a model is least sure.

    Every prediction leaves its figure with the study. Those that have none from the weights in use
    are segmented now, some at a time.

    Args:
        infers: Models by name.
        infer: Segments a study for a request, and keeps the figure.
    """

    def __init__(
        self, infers: dict[str, BundleInfer], infer: Callable[[dict[str, Any]], Any]
    ) -> None:
        super().__init__("The study that the model is least sure of: entropy where it sees a class")
        self.infers, self.infer = infers, infer

    def __call__(self, request: dict[str, Any], datastore: Studies) -> dict[str, Any] | None:
        """Its name, its figure, and how many studies have none yet.

        Raises:
            ValueError: If there is no such model, or it has no weights.
        """
        model = request.get("model") or next(iter(self.infers))
        task = self.infers.get(model)
        if task is None or task.shelf.served is None:
            raise ValueError(f"{str(model)[:80]!r} is no model with weights; see /info/")
        weights = digest(task.shelf.served)
        of_kind = [
            name
            for name, file in datastore.open_studies().items()
            if is_video(file) == task.bundle.of_videos
        ]
        unknown = [n for n in of_kind if _figure(datastore, n, model, weights) is None]
        failed = []
        for name in unknown[:AT_ONCE]:
            try:
                result = self.infer({"model": model, "image": name})
            except ValueError:  # one that cannot be read does not hide the others
                failed.append(name)
            else:
                remove_result(result["file"])
        figures = {n: _figure(datastore, n, model, weights) for n in of_kind}
        known = {name: figure for name, figure in figures.items() if figure is not None}
        if not known:
            return None
        chosen = max(known, key=known.__getitem__)
        left = len(of_kind) - len(known) - len(failed)
        return {"id": chosen, "model": model, "uncertainty": known[chosen], "not_yet_seen": left}


class DiceOfPredictions(ScoringMethod):
    """Dice of what networks predicted against final labels, class by class."""

    def __init__(self) -> None:
        super().__init__("Dice of predicted labels against final ones, of each class")

    def __call__(self, request: dict[str, Any], datastore: Studies) -> dict[str, Any]:
        """Scores by study, and their mean; kept with each study as "dice"."""
        scores = {}
        for study in datastore.labelled_studies():
            info = datastore.get_label_info(study.name, PREDICTED)
            if "label_names" not in info:
                continue
            predicted = Path(datastore.get_label_uri(study.name, PREDICTED))
            classes, of_video = info["label_names"], is_video(study.image)
            scores[study.name] = dice(study.label, predicted, classes, of_video)
            datastore.update_image_info(study.name, {"dice": scores[study.name]})
        return {"dice": scores, "mean_dice": mean_dice(scores.values())}


class BatchInfer:
    """Predictions of many studies, kept as their labels; MONAI Label calls it in a process.

    Before each study it lets those go first who ask for one.
    """

    def __call__(self, request: dict[str, Any], datastore: Studies, infer: Callable) -> dict:
        """What became of each study: "done", or why not."""
        model, which = request["model"], request.get("images", "all")
        names = {
            "all": datastore.list_images,
            "labeled": datastore.get_labeled_images,
            "unlabeled": datastore.get_unlabeled_images,
        }[which]()
        print(f"{len(names)} studies, each when nobody else asks for one", flush=True)
        done = {}
        for number, name in enumerate(sorted(names), start=1):
            try:
                infer({"model": model, "image": name, "save_label": True, "after_all": True})
                done[name] = "done"
            except ValueError as error:
                done[name] = str(error)
            print(f"{number}/{len(names)} {name}: {done[name]}", flush=True)
        return done


def _figure(datastore: Studies, name: str, model: str, weights: str) -> float | None:
    """How uncertain these weights were of a study; None if they have not seen it."""
    kept = datastore.get_image_info(name).get("uncertainty", {}).get(model, {})
    return kept["value"] if kept.get("weights") == weights else None


def remove_result(file: str | None) -> None:
    """Take away a result that was sent or moved, and the folders that were made for it."""
    if file:
        path = Path(file)
        path.unlink(missing_ok=True)
        for folder in (path.parent, path.parent.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                os.rmdir(folder)

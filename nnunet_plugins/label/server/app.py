"""The app that MONAI Label loads: bundles and nnU-Net results over a folder of studies."""

import os
import shutil
from pathlib import Path
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from nnunet_plugins.label.catalogue import bundle_of_results, open_bundles
from nnunet_plugins.label.dicom_series import import_series
from nnunet_plugins.label.environment import GUARDED, work_folder
from nnunet_plugins.label.names import confined
from nnunet_plugins.label.patients import Patients
from nnunet_plugins.label.server.datastore import Studies
from nnunet_plugins.label.server.tasks import (
    PREDICTED,
    BatchInfer,
    BundleInfer,
    BundleTrain,
    DiceOfPredictions,
    RandomStudy,
    UncertainStudy,
    remove_result,
)
from nnunet_plugins.label.shelf import Shelf
from nnunet_plugins.label.turns import Turns


class LabelApp(MONAILabelApp):
    """Served bundles under the names of their folders.

    Args:
        app_dir: Folder of `main.py`.
        studies: Folder of the studies.
        conf: `bundles`, names or folders with commas between; `nnunet`, a results folder; and
            `group_by`, see `Patients`.

    Raises:
        MONAILabelException: If it was started without the guard, or the studies are no folder.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        if GUARDED not in os.environ:
            raise MONAILabelException(
                MONAILabelError.APP_INIT_ERROR,
                "this app has no token of its own; start it with mambamed label --studies FOLDER",
            )
        self.work = work_folder(Path(studies))
        self.turns = Turns(self.work)
        self.patients = Patients(Path(studies).resolve(), conf.get("group_by"))
        self.bundles = open_bundles([n for n in conf.get("bundles", "").split(",") if n])
        if conf.get("nnunet"):
            bundle = bundle_of_results(Path(conf["nnunet"]), self.work / "nnunet")
            self.bundles[bundle.name] = bundle
        self.shelves = {
            name: Shelf(self.work / "models" / name, bundle.shipped)
            for name, bundle in self.bundles.items()
        }
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="mambamed",
            description="Mamba networks for medical volumes and video",
        )

    def init_datastore(self) -> Studies:
        """The folder of studies.

        Raises:
            MONAILabelException: If the studies are at an address.
        """
        if "://" in self.studies:
            raise MONAILabelException(
                MONAILabelError.APP_INIT_ERROR, "give a folder of studies, not an address"
            )
        self.series = import_series(Path(self.studies).resolve(), self.temporary)
        watch = os.environ.get("MONAI_LABEL_DATASTORE_AUTO_RELOAD", "true") == "true"
        return Studies(self.studies, watch)

    def init_infers(self) -> dict[str, BundleInfer]:
        """One for each bundle."""
        return {
            name: BundleInfer(bundle, self.shelves[name], self.turns, self.temporary)
            for name, bundle in self.bundles.items()
        }

    def init_trainers(self) -> dict[str, BundleTrain]:
        """One for each bundle that can be trained."""
        return {
            name: BundleTrain(bundle, self.shelves[name], self.patients)
            for name, bundle in self.bundles.items()
            if (bundle.folder / "configs" / "train.json").is_file()
        }

    def init_strategies(self) -> dict[str, Any]:
        """Which study comes next."""
        return {"random": RandomStudy(), "uncertainty": UncertainStudy(self._infers, self.infer)}

    def init_scoring_methods(self) -> dict[str, Any]:
        """How predictions are scored."""
        return {"dice": DiceOfPredictions()}

    def init_batch_infer(self) -> BatchInfer:
        """Many studies at once."""
        return BatchInfer()

    @property
    def temporary(self) -> Path:
        """Folder of files on their way, on the file system of the studies."""
        return self.work / "tmp"

    def clean(self) -> None:
        """Take away what a killed server left half done."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def info(self) -> dict[str, Any]:
        """What clients are told."""
        return super().info() | {"queue": self.turns.state()}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Labels of a study, and the uncertainty kept with it.

        Args:
            request: `model`; `image`, a study's name, or `file`, one that was just received;
                `save_label`, whether to keep the result as the study's predicted label; and
                `after_all`, whether all other requests go first.
            datastore: MONAI Label's; not used, there is one.

        Raises:
            MONAILabelException: If there is no such model or study.
            ValueError: If the study cannot be segmented.
        """
        model = request["model"]
        task = self._infers.get(model)
        if task is None:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"there is no model {str(model)[:80]!r}; served are {', '.join(self._infers)}",
            )
        received, study = request.get("file"), request.get("image")
        path = (
            confined(self.temporary, Path(received).name)
            if received
            else Path(self._datastore.get_image_uri(study))
        )
        file, facts = task({"image": str(path), "after_all": request.get("after_all")})
        try:
            if not received:
                figure = {"value": facts["uncertainty"], "weights": facts["weights"]}
                before = self._datastore.get_image_info(study).get("uncertainty", {})
                self._datastore.update_image_info(study, {"uncertainty": {**before, model: figure}})
            if received or not request.get("save_label"):
                return {"label": file, "file": file, "tag": PREDICTED, "params": facts}
            self._datastore.save_label(study, file, PREDICTED, {"model": model, **facts})
        except BaseException:
            remove_result(file)
            raise
        remove_result(file)
        return {"label": study, "file": None, "tag": PREDICTED, "params": facts}

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """The study to label next, without its place on this machine.

        Raises:
            MONAILabelException: If there is no such strategy.
        """
        strategy = self._strategies.get(request["strategy"])
        if strategy is None:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"there is no strategy {str(request['strategy'])[:80]!r}; there are "
                f"{', '.join(self._strategies)}",
            )
        chosen = strategy(request, self._datastore)
        return self._datastore.get_image_info(chosen["id"]) | chosen if chosen else {}

    def reload(self) -> None:
        """Look for new studies, and read weights again."""
        self.series = import_series(Path(self.studies).resolve(), self.temporary)
        self._datastore.refresh()
        for bundle in self.bundles.values():
            bundle.forget()

    def on_init_complete(self) -> None:
        """Called when the server is ready."""
        self.clean()

    def shelf(self, model: str) -> Shelf:
        """Weights of a model.

        Raises:
            MONAILabelException: If there is no such model.
        """
        if model not in self.shelves:
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT,
                f"there is no model {model[:80]!r}; served are {', '.join(self.shelves)}",
            )
        return self.shelves[model]

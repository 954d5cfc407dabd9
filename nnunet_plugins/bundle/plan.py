"""An nnU-Net plan inside a bundle: what was planned, and nnU-Net's own functions driven by it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunet_plugins.check import file_problem

Properties = dict[str, Any]
"""nnU-Net's record of an image: its geometry, and what preprocessing did to it."""


class Plan:
    """One configuration of an nnU-Net plan.

    Arrays are (c, z, y, x), as nnU-Net's readers give them.

    Args:
        folder: Where `plans.json` and `dataset.json` lie, as nnU-Net writes them into results.
        configuration: Such as 3d_fullres.

    Raises:
        ValueError: If the plans have no such configuration, or it needs a previous stage.
    """

    def __init__(self, folder: str | Path, configuration: str) -> None:
        plans, self.dataset = (
            json.loads((Path(folder) / name).read_text(encoding="utf-8"))
            for name in ("plans.json", "dataset.json")
        )
        if configuration not in plans["configurations"]:
            raise ValueError(
                f"{folder}/plans.json plans {', '.join(plans['configurations'])}, not "
                f"{configuration!r}; name one of those"
            )
        self.plans = PlansManager(plans)
        self.configuration = self.plans.get_configuration(configuration)
        self.labels = self.plans.get_label_manager(self.dataset)
        if self.configuration.previous_stage_name is not None:
            raise ValueError(
                f"{configuration} starts from the predictions of "
                f"{self.configuration.previous_stage_name}, which a bundle of one network cannot "
                "make; choose a configuration of a single stage"
            )

    @property
    def channels(self) -> list[str]:
        """Names of the image's channels, in the order of their files."""
        names = self.dataset.get("channel_names") or self.dataset["modality"]
        return [names[key] for key in sorted(names, key=int)]

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """What is segmented, background aside: names and the label values that belong to them."""
        values = {
            name: tuple(value) if isinstance(value, list) else (value,)
            for name, value in self.dataset["labels"].items()
        }
        return {n: v for n, v in values.items() if set(v) != {0} and n != "ignore"}

    @property
    def outputs(self) -> int:
        """Logit maps of the network."""
        return self.labels.num_segmentation_heads

    @property
    def patch_size(self) -> list[int]:
        """Grid of a patch, coarsest axis first."""
        return list(self.configuration.patch_size)

    @property
    def file_ending(self) -> str:
        """Such as .nii.gz."""
        return self.dataset["file_ending"]

    def preprocess(
        self, images: Sequence[str], label: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.integer], Properties]:
        """A case as the network takes it: image (c, ...), label (1, ...) and its properties.

        Raises:
            ValueError: If a file is missing or corrupt, or the files are not one per channel.
        """
        images = [str(file) for file in images]
        for file in (*images, *([label] if label else [])):
            _refuse_unusable(Path(file))
        reader = self.plans.image_reader_writer_class()
        image, properties = self._read(reader, images)
        segmentation = reader.read_seg(str(label))[0] if label else None
        if label and segmentation.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"{Path(label).name} has the shape {segmentation.shape[1:]} and its image "
                f"{image.shape[1:]}; give the label of this image"
            )
        preprocessor = self.configuration.preprocessor_class(verbose=False)
        image, segmentation, properties = preprocessor.run_case_npy(
            image, segmentation, properties, self.plans, self.configuration, self.dataset
        )
        properties.pop("class_locations", None)  # large, and of nnU-Net's own training only
        return image.astype(np.float32, copy=False), segmentation, properties

    def _read(self, reader: Any, images: list[str]) -> tuple[NDArray[np.float32], Properties]:
        name = Path(images[0]).name
        try:
            image, properties = reader.read_images(images)
        except RuntimeError as error:  # nnU-Net's has no words, it prints them
            raise ValueError(
                f"the channels of {name} differ in shape or spacing; resample them to one grid"
            ) from error
        if len(image) != len(self.channels):
            raise ValueError(
                f"{name} comes with {len(image)} channels and this network takes "
                f"{len(self.channels)} ({', '.join(self.channels)}); give one file each"
            )
        return image, properties

    def segment(self, logits: NDArray[np.floating], properties: Properties) -> NDArray[np.integer]:
        """Labels (z, y, x) on the grid of the image's file, from logits on the network's."""
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self.plans,
            self.configuration,
            self.labels,
            properties,
            num_threads_torch=torch.get_num_threads(),
        )

    def read_label(self, file: str | Path) -> NDArray[np.float32]:
        """Labels (z, y, x) of a file as they are.

        Raises:
            ValueError: If the file is missing or corrupt.
        """
        _refuse_unusable(Path(file))
        return self.plans.image_reader_writer_class().read_seg(str(file))[0][0]

    def write_label(
        self, segmentation: NDArray[np.integer], file: Path, properties: Properties
    ) -> None:
        """Write labels (z, y, x) with the geometry of their image, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".partial_{file.name}")
        try:
            self.plans.image_reader_writer_class().write_seg(segmentation, str(partial), properties)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def affine(properties: Properties) -> NDArray[np.float64]:
    """Voxel (x, y, z) to millimetres in the RAS frame, as MONAI and NIfTI have it, (4, 4)."""
    matrix = np.eye(4)
    if "nibabel_stuff" in properties:
        return np.asarray(properties["nibabel_stuff"]["original_affine"])
    if "sitk_stuff" not in properties:  # formats without a frame
        matrix[:3, :3] = np.diag(properties["spacing"][::-1])
        return matrix
    geometry = properties["sitk_stuff"]
    axes = len(geometry["spacing"])
    direction = np.reshape(geometry["direction"], (axes, axes))
    matrix[:axes, :axes] = direction @ np.diag(geometry["spacing"])
    matrix[:axes, 3] = geometry["origin"]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix  # ITK's frame is LPS


def _refuse_unusable(file: Path) -> None:
    problem = file_problem(file)
    if problem:
        raise ValueError(f"{problem}; repair the file or leave the case out")

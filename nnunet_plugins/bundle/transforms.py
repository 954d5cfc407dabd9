"""nnU-Net's way from files to network input and back, as MONAI dictionary transforms.

A preprocessed image carries nnU-Net's properties of its case in `applied_operations`, the place
where MONAI keeps what a way back needs; they survive batching and decollation.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, SaveImaged

from nnunet_plugins.bundle.cases import case_name
from nnunet_plugins.bundle.plan import Plan, Properties, affine

Data = Mapping[Hashable, Any]


class NNUNetPreprocessd(MapTransform):
    """Files to the network's input, as nnU-Net preprocesses them for this plan.

    The image becomes (c, ...) float32; the label, if there is one, (1, ...) on the same grid.

    Args:
        plan: The plan.
        keys: Key of the image: a file, or one for each channel.
        label_key: Key of the label's file; None to leave labels alone.

    Raises:
        ValueError: If a file is missing or corrupt, or the files are not one per channel.
    """

    def __init__(self, plan: Plan, keys: str = "image", label_key: str | None = None) -> None:
        super().__init__(keys)
        self.plan, self.label_key = plan, label_key

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        (key,) = self.keys
        files = [d[key]] if isinstance(d[key], str | Path) else list(d[key])
        label_file = d[self.label_key] if self.label_key else None
        image, label, properties = self.plan.preprocess(files, label_file)
        meta = {"filename_or_obj": str(files[0])}
        record = {"class": type(self).__name__, "id": id(self), "extra_info": properties}
        d[key] = MetaTensor(torch.from_numpy(image), meta=meta, applied_operations=[record])
        if self.label_key:
            label = np.maximum(label, 0)  # nnU-Net marks what it cropped to by -1
            d[self.label_key] = MetaTensor(torch.from_numpy(label.astype(np.float32)), meta=meta)
        return d


class NNUNetSegmentationd(MapTransform):
    """Logits to labels on the grid of the image's file: (k, ...) -> (1, x, y, z), with its affine.

    Args:
        plan: The plan.
        keys: Key of the logits.
        image_key: Key of the image, preprocessed by `NNUNetPreprocessd`.
    """

    def __init__(self, plan: Plan, keys: str = "pred", image_key: str = "image") -> None:
        super().__init__(keys)
        self.plan, self.image_key = plan, image_key

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.image_key]
        found = properties(image)
        for key in self.key_iterator(d):
            logits = torch.as_tensor(d[key]).cpu().numpy()
            labels = self.plan.segment(logits, found)
            meta = {"filename_or_obj": image.meta["filename_or_obj"]}
            d[key] = _monai_label(labels, affine(found), meta)
        return d


class NNUNetReadLabeld(MapTransform):
    """Label files as they are: a file -> (1, x, y, z), to compare predictions with."""

    def __init__(self, plan: Plan, keys: str = "label") -> None:
        super().__init__(keys)
        self.plan = plan

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            meta = {"filename_or_obj": str(d[key])}
            d[key] = _monai_label(self.plan.read_label(d[key]), np.eye(4), meta)
        return d


class NNUNetSaved(SaveImaged):
    """Write labels (1, x, y, z) as nnU-Net does, to `CASE.nii.gz` or what its files end in.

    A `SaveImaged`, so that MONAI Label knows what to leave out.

    Args:
        plan: The plan.
        output_dir: Folder of the files.
        keys: Key of the labels.
        image_key: Key of the image, preprocessed by `NNUNetPreprocessd`.
    """

    def __init__(
        self, plan: Plan, output_dir: str, keys: str = "pred", image_key: str = "image"
    ) -> None:
        super().__init__(keys, output_dir=output_dir)
        self.plan, self.output_dir, self.image_key = plan, Path(output_dir), image_key

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.image_key]
        name = case_name(image.meta["filename_or_obj"], self.plan) + self.plan.file_ending
        for key in self.key_iterator(d):
            labels = np.asarray(d[key].cpu())[0].transpose(2, 1, 0)
            self.plan.write_label(labels, self.output_dir / name, properties(image))
        return d


class ForegroundMasksd(MapTransform):
    """Labels to one mask for each class or region of the plan: (1, ...) -> (k, ...) float32.

    Where the label is the plan's ignore label all masks are 0, as nnU-Net leaves that out.
    """

    def __init__(
        self, plan: Plan, keys: Any = ("pred", "label"), label_key: Hashable = "label"
    ) -> None:
        super().__init__(keys)
        self.plan, self.label_key = plan, label_key

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        truth = torch.as_tensor(d[self.label_key])[0]
        for key in self.key_iterator(d):
            labels = torch.as_tensor(d[key])[0]
            classes = [torch.tensor(v, device=labels.device) for v in self.plan.foreground.values()]
            masks = torch.stack([torch.isin(labels.long(), c) for c in classes]).float()
            if self.plan.labels.has_ignore_label:
                masks *= (truth != self.plan.labels.ignore_label).to(masks)
            d[key] = masks
        return d


def properties(image: MetaTensor) -> Properties:
    """nnU-Net's properties of a preprocessed image.

    Raises:
        ValueError: If the image was not preprocessed by `NNUNetPreprocessd`.
    """
    for record in getattr(image, "applied_operations", []):
        if record.get("class") == NNUNetPreprocessd.__name__:
            return record["extra_info"]
    raise ValueError("this image was not preprocessed by NNUNetPreprocessd; put that first")


def _monai_label(labels: Any, matrix: Any, meta: dict[str, Any]) -> MetaTensor:
    """Labels (z, y, x) as MONAI has them, (1, x, y, z)."""
    ordered = np.ascontiguousarray(labels.transpose(2, 1, 0))[None]
    return MetaTensor(torch.from_numpy(ordered), affine=torch.from_numpy(matrix), meta=meta)

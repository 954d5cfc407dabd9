"""A bundle that segments one study at a time, by its own configuration."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from nnunet_plugins.bundle.command import MENDABLE, default_device, first_cause
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.bundle.training import read_weights
from nnunet_plugins.bundle.video import MASKS, VideoResult
from nnunet_plugins.data.masks import LabelScheme, read_mask
from nnunet_plugins.label.disk import told
from nnunet_plugins.label.names import confined, is_video
from nnunet_plugins.label.uncertainty import Uncertainty
from nnunet_plugins.label.volumes import check_alone


@dataclass(frozen=True)
class Prediction:
    """What became of a study."""

    file: Path
    """Labels on the study's grid; of a video (t, h, w) as SimpleITK reads them."""
    uncertainty: float
    """See `Uncertainty`."""


class ServedBundle:
    """The masks that `python -m monai.bundle run` gives, one study at a time.

    Args:
        folder: The bundle.
        name: Under which it is served; the folder's if None.

    Raises:
        FileNotFoundError: If there is no such bundle.
        ValueError: If it gives no masks.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder, self.name = Path(folder), name or Path(folder).resolve().name
        self.device = default_device()
        config = self._parser()
        if not (self.folder / "configs" / "plans.json").is_file():
            raise ValueError(f"{self.folder} names videos or frames and gives no masks to serve")
        self.plan: Plan = made(config, "plan")
        first = config.get("preprocessing#transforms#0#_target_", "")
        self.of_videos = first.endswith(".OpenVideod")
        self._loaded: tuple[object, nn.Module] | None = None

    @property
    def labels(self) -> dict[str, int]:
        """Names and values of what is segmented."""
        return {name: values[0] for name, values in self.plan.foreground.items()}

    @property
    def description(self) -> str:
        """Of the bundle's metadata."""
        metadata = self.folder / "configs" / "metadata.json"
        return json.loads(metadata.read_text(encoding="utf-8"))["description"]

    @property
    def shipped(self) -> Path:
        """Where the bundle's own weights are, if it has any."""
        return self.folder / "models" / "model.pt"

    def check(self, study: Path) -> None:
        """Refuse what this bundle is not for.

        Raises:
            ValueError: If it is for volumes and this is a video, or the other way round.
        """
        if is_video(study) != self.of_videos:
            wanted, given = ("videos", "a volume") if self.of_videos else ("volumes", "a video")
            raise ValueError(f"{self.name} segments {wanted} and {study.name} is {given}")

    def segment(self, study: Path, out: Path, weights: Path) -> Prediction:
        """Labels of a study in a folder that is made for them.

        Args:
            study: A volume, that of the first channel if it has several, or a video.
            out: Folder of the result.
            weights: State dict, which must fit the network name by name.

        Raises:
            ValueError: If the study or the weights cannot be used.
        """
        self.check(study)
        network = self.network(weights)
        config = self._parser(output_dir=str(out), overlay=False)
        unsure = Uncertainty(self.plan.labels.has_regions)
        with torch.no_grad():
            try:
                item = made(config, "preprocessing")({"image": self._files(study)})
                logits = self._logits(item["image"], made(config, "inferer"), network, unsure)
                done = made(config, "postprocessing")({**item, "pred": logits})["pred"]
            except MENDABLE as error:  # MONAI wraps a transform's error in its own
                raise ValueError(told(first_cause(error))) from error
        if isinstance(done, VideoResult):
            return Prediction(self._volume_of_masks(done), unsure.mean)
        (file,) = out.iterdir()
        return Prediction(file, unsure.mean)

    def network(self, weights: Path) -> nn.Module:
        """The network with weights; kept until others are asked for."""
        status = weights.stat()
        key = (weights, status.st_mtime_ns, status.st_size, status.st_ino)
        if self._loaded is None or self._loaded[0] != key:
            network: nn.Module = made(self._parser(), "network_def")
            try:
                network.load_state_dict(read_weights(weights))
            except RuntimeError as error:
                raise ValueError(f"{weights} does not fit {self.name}: {error}") from error
            self._loaded = key, network.to(self.device).eval()
        return self._loaded[1]

    def forget(self) -> None:
        """Let go of the network; it is read again when it is needed."""
        self._loaded = None

    def _logits(
        self, image: Any, inferer: Callable, network: nn.Module, unsure: Uncertainty
    ) -> Any:
        """Logits (k, ...) of a volume, or those of the frames of a video as they come."""
        if not isinstance(image, Tensor):
            return unsure.over(inferer(image, network))
        logits = inferer(image[None].to(self.device), network)[0]
        unsure.add(logits)
        return logits

    def _files(self, study: Path) -> str | list[str]:
        return str(study) if self.of_videos else [str(f) for f in channel_files(study, self.plan)]

    def _volume_of_masks(self, result: VideoResult) -> Path:
        """Masks of frames as one volume, which `mambamed dataset to-videos` reads too."""
        if result.error:
            raise ValueError(result.error)
        scheme = LabelScheme(tuple(self.plan.foreground))
        files = sorted((result.folder / MASKS).iterdir())
        labels = np.stack([scheme.encode(read_mask(file), file.name) for file in files])
        volume = result.folder.with_suffix(".nii.gz")
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(volume))
        shutil.rmtree(result.folder)
        return volume

    def _parser(self, **options: Any) -> ConfigParser:
        file = self.folder / "configs" / "inference.json"
        if not file.is_file():
            raise FileNotFoundError(f"{self.folder} is no bundle: there is no {file}")
        parser = ConfigParser()
        parser.read_config(file)
        parser.update({"bundle_root": str(self.folder), **options})
        return parser


def made(parser: ConfigParser, key: str) -> Any:
    """What a configuration makes; helpers of commands, which end those, end the request.

    Raises:
        ValueError: If it cannot be made.
    """
    try:
        return parser.get_parsed_content(key)
    except SystemExit as end:
        raise ValueError(str(end.code)) from end
    except RuntimeError as error:
        raise ValueError(str(first_cause(error))) from error


def channel_files(study: Path, plan: Plan) -> list[Path]:
    """The file of each channel: the study's, and those beside it that are numbered like it.

    Raises:
        ValueError: If the network takes several channels and the file is not numbered, or a link
            or header leads elsewhere.
    """
    channels = len(plan.channels)
    if channels == 1:
        return [study]
    stem, found, ending = study.name.rpartition("_0000")
    if not found:
        raise ValueError(
            f"this network takes {channels} channels ({', '.join(plan.channels)}) and {study.name} "
            "is one file; call them CASE_0000, CASE_0001 and so on, and name CASE_0000"
        )
    names = (f"{stem}_{index:04d}{ending}" for index in range(channels))
    files = [confined(study.parent, name) for name in names]
    for file in filter(Path.is_file, files):
        check_alone(file)
    return files

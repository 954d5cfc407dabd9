"""The network of a bundle's folder, and how its frames are prepared and its answers read.

Shapes: c channels, k classes, h w frame.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.bundle.command import first_cause
from nnunet_plugins.bundle.frames import FramePlan
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.data.clips import Frame
from nnunet_plugins.data.masks import LabelScheme
from nnunet_plugins.stream.answers import Answer, Segmentation, frame_class, head_of

DEFAULT_SIDES = (224, 224)
"""Height and width for networks of whole frames whose configuration names none."""


class StreamBundle:
    """A bundle whose network answers frame by frame.

    Its folder holds `configs/inference.json` with `network_def`, `models/model.pt`, and
    `configs/dataset.json` with the labels. Either configuration has a `stride` where it was trained
    on clips of every so manyth frame. With `configs/plans.json` frames are prepared as nnU-Net
    planned; without, they are divided by 255 and resized to the network's `image_size`.

    Args:
        folder: The bundle.
        size: Height and width that frames are resized to before the plan's preparation, or instead
            of `image_size`; None to leave that to the bundle.
        stride: Frames from one that the network sees to the next; the bundle's if None.

    Raises:
        FileNotFoundError: If there is no such bundle, or it has no weights.
        ValueError: If its configurations or weights are damaged, its network has no step, or the
            weights do not fit.
    """

    def __init__(
        self,
        folder: str | Path,
        size: tuple[int, int] | None = None,
        stride: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        parser = _configuration(self.folder)
        self.network: Any = _network(parser, self.folder)
        dataset = _json(self.folder / "configs" / "dataset.json")
        labels = dataset.get("labels", {})
        self.names = sorted(labels, key=lambda name: np.min(labels[name]))
        self.plan = self._plan(parser)
        self.image_size = _image_size(parser)
        self.stride = stride or _stride(parser, dataset)
        self.size = size if size or self.plan else self.image_size

    def prepare(self, picture: Frame) -> Tensor:
        """A frame as the network takes it: (h, w, 3) uint8 -> (1, c, h', w') float32."""
        if self.size and picture.shape[:2] != self.size:
            pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True)
            picture = pixels[0].round().byte().permute(1, 2, 0).numpy()
        if self.plan:
            return self.plan.prepare(picture)[None]
        return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255

    def answer(self, outputs: Any, picture: Frame) -> Answer:
        """What the network's outputs for one frame say about it.

        Raises:
            ValueError: If its head can neither be drawn nor named.
        """
        head, outputs = head_of(outputs), outputs[0]  # of the only stream
        if head == "classes":
            return frame_class(outputs, self.names)
        size = (picture.shape[0], picture.shape[1])
        if self.plan is None or self.size:
            maps = outputs[None].float()
            outputs = F.interpolate(maps, size, mode="bilinear", antialias=False)[0]
        if self.plan is None:
            return Segmentation(outputs.argmax(0).byte().cpu().numpy())
        return Segmentation(self._labels(outputs.float(), size))

    def mask(self, answer: Segmentation) -> np.ndarray:
        """A segmentation as the grey values of a mask file, (h, w) uint8."""
        names = [name for name in self.names if name not in ("background", "ignore")]
        return LabelScheme(tuple(names)).decode(answer.labels)

    def _labels(self, logits: Tensor, size: tuple[int, int]) -> np.ndarray:
        assert self.plan is not None
        if tuple(logits.shape[1:]) != size:
            return self.plan.labels(logits, size)
        labels = self.plan.plan.labels.convert_logits_to_segmentation(logits)
        return labels.byte().cpu().numpy()

    def _plan(self, parser: ConfigParser) -> FramePlan | None:
        configs = self.folder / "configs"
        if not (configs / "plans.json").is_file():
            return None
        _json(configs / "plans.json")  # which names a file that cannot be read
        try:
            return FramePlan(Plan(configs, parser.get_parsed_content("configuration")))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{configs}/plans.json is not what nnU-Net writes, {error} is missing; export the "
                "bundle again with mambamed export-bundle"
            ) from error


def _configuration(folder: Path) -> ConfigParser:
    file = folder / "configs" / "inference.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no bundle: it has no configs/inference.json")
    if "network_def" not in _json(file):
        raise ValueError(f"{file} has no network_def; give the folder of a bundle with a network")
    parser = ConfigParser()
    parser.read_config(str(file))
    parser["bundle_root"] = str(folder)
    return parser


def _network(parser: ConfigParser, folder: Path) -> nn.Module:
    """What `network_def` describes, with the bundle's weights."""
    try:
        network = parser.get_parsed_content("network_def")
    except RuntimeError as error:  # MONAI's, around the reason
        raise ValueError(
            f"network_def of {folder}/configs/inference.json cannot be built: {first_cause(error)}"
        ) from error
    if not hasattr(network, "step"):
        raise ValueError(
            f"{folder} holds a {type(network).__name__}, which cannot be asked frame by frame: it "
            "has no step; run the bundle on files with python -m monai.bundle run, or stream an "
            "EndoMamba"
        )
    weights = folder / "models" / "model.pt"
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights} does not exist, this bundle has no weights yet; train it, or put those of "
            "a training into a bundle with mambamed export-bundle"
        )
    state = _state_dict(weights)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} does not fit network_def of configs/inference.json: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return network.eval()


def _state_dict(file: Path) -> dict[str, Tensor]:
    """Weights, of a training's checkpoint too."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{file} is damaged, or holds more than tensors, numbers and text, which is not loaded "
            "for safety; put the weights there again"
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} holds no state dict; save network.state_dict()")
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise ValueError(f"{file} holds weights that are not finite; its training diverged")
    return state


def _stride(parser: ConfigParser, dataset: dict[str, Any]) -> int:
    stride = parser.get_parsed_content("stride", default=dataset.get("stride", 1))
    if not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride {stride!r} of the bundle is none; write 1 or more in its configs")
    return stride


def _image_size(parser: ConfigParser) -> tuple[int, int]:
    height, width = parser.get_parsed_content("network_def#image_size", default=DEFAULT_SIDES)
    return int(height), int(width)


def _json(file: Path) -> dict[str, Any]:
    """An object, empty if there is no file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}; put the bundle's file back") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object; put the bundle's file back")
    return content

"""Teachers of the transformers library: video models, and image models frame by frame.

Each family lays out its tokens in its own order, and some take clips of one length and size only;
`FAMILIES` says so for those that are known.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.imagenet import IMAGENET_MEAN, IMAGENET_STD
from pretrain.teachers.interface import FrozenTeacher

PREPARATION: Mapping[str, Any] = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "offset": False,
    "do_normalize": True,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}
"""Of pixels, as in preprocessor_config.json; these values where the folder has no such file."""
PREPARATIONS = ("video_preprocessor_config.json", "preprocessor_config.json")
UNUSED = ("pooler", "predictor", "head", "classifier", "fc_norm", "decoder")
"""Parts of models, beside the tokens, whose weights may be missing."""


@dataclass(frozen=True)
class Family:
    """How a family of models takes clips and gives tokens; functions of its configuration."""

    patch: Callable[[Any], tuple[int, int, int]]
    """Frames, rows and columns of pixels of a token."""
    size: Callable[[Any], int]
    """Height and width of frames."""
    frames: Callable[[Any], int | None]
    """Of a clip; None if any number."""
    first: Callable[[Any], int] = lambda config: 0
    """Tokens before those of the grid."""
    time_last: bool = False
    """Whether tokens of one place follow each other, all its times, before the next place."""
    video: bool = True
    options: Mapping[str, Any] | None = None
    """Further arguments of a pass."""


def _square(config: Any) -> tuple[int, int, int]:
    return (1, config.patch_size, config.patch_size)


def _tubes(config: Any) -> tuple[int, int, int]:
    return (config.tubelet_size, config.patch_size, config.patch_size)


def _image_size(config: Any) -> int:
    return int(config.image_size)


def _any(config: Any) -> None:
    return None


FAMILIES: Mapping[str, Family] = {
    "videomae": Family(_tubes, _image_size, lambda c: c.num_frames),
    "vivit": Family(
        lambda c: tuple(c.tubelet_size), _image_size, lambda c: c.num_frames, lambda c: 1
    ),
    "timesformer": Family(
        _square, _image_size, lambda c: c.num_frames, lambda c: 1, time_last=True
    ),
    "vjepa2": Family(_tubes, lambda c: c.crop_size, _any, options={"skip_predictor": True}),
    "vit": Family(_square, _image_size, _any, lambda c: 1, video=False),
    "deit": Family(_square, _image_size, _any, lambda c: 2, video=False),
    "dinov2": Family(_square, _image_size, _any, lambda c: 1, video=False),
    "dinov2_with_registers": Family(
        _square, _image_size, _any, lambda c: 1 + c.num_register_tokens, video=False
    ),
}
"""Families whose tokens stand on a known grid, by the `model_type` of their configuration."""


class HuggingFaceTeacher(FrozenTeacher):
    """A model of transformers; clips are brought to its own size, length and scale of pixels.

    Where it takes another number of frames, each of its frames is the clip's nearest in time.

    Args:
        model: One of `FAMILIES`, without a head.
        name: To be recorded.
        preparation: Of pixels, as `PREPARATION`, which fills in what is missing.

    Raises:
        ValueError: If the model's tokens stand on no grid that is known.
    """

    def __init__(
        self, model: nn.Module, name: str, preparation: Mapping[str, Any] | None = None
    ) -> None:
        config: Any = model.config
        family = FAMILIES.get(config.model_type)
        time_less = getattr(config, "attention_type", "") == "space_only"
        if family is None or time_less:
            raise ValueError(
                f"{name} is a model of type {config.model_type!r}, whose output has no token grid "
                f"that is known; take one of {', '.join(FAMILIES)}"
                + (", with attention over time" if time_less else "")
            )
        super().__init__(model, name, config.hidden_size)
        self.family, self.config = family, config
        self.preparation = {**PREPARATION, **(preparation or {})}

    def run(self, clip: Tensor) -> Tensor:
        """As `FrozenTeacher`."""
        frames = self.family.frames(self.config) or clip.shape[2]
        patch = self.family.patch(self.config)
        frames = max(frames // patch[0], 1) * patch[0]
        size = self.family.size(self.config)
        x = self._prepared(_resized(clip, frames, size)).transpose(1, 2)  # (b, t, c, h, w)
        grid = [n // p for n, p in zip((frames, size, size), patch, strict=True)]
        if not self.family.video:
            tokens = self._patches(x.flatten(0, 1), grid[1] * grid[2])
            return tokens.view(len(clip), *grid, -1)
        tokens = self._patches(x, grid[0] * grid[1] * grid[2])
        if self.family.time_last:
            return tokens.view(len(clip), *grid[1:], grid[0], -1).movedim(3, 1)
        return tokens.view(len(clip), *grid, -1)

    def _patches(self, x: Tensor, places: int) -> Tensor:
        """Tokens of the grid: frames or clips -> (b, places, c).

        Raises:
            ValueError: If there are more or fewer tokens than places.
        """
        tokens = self.model(x, **(self.family.options or {})).last_hidden_state
        first = self.family.first(self.config)
        if tokens.ndim != 3 or tokens.shape[1] != first + places:
            raise ValueError(
                f"{self.name} gives {tuple(tokens.shape)} where {places} places and {first} other "
                "tokens were to come: this output has no token grid that is known; take another "
                "teacher"
            )
        return tokens[:, first:]

    def _prepared(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] as the model was trained on: (b, c, t, h, w) -> the same."""
        how = self.preparation
        scale = 255 * how["rescale_factor"] if how["do_rescale"] else 255
        x = scale * x - float(how["do_rescale"] and how["offset"])
        if how["do_normalize"]:
            mean, std = (
                x.new_tensor(how[key]).view(-1, 1, 1, 1) for key in ("image_mean", "image_std")
            )
            x = (x - mean) / std
        return x


def huggingface_teacher(folder: Path) -> HuggingFaceTeacher:
    """The teacher in a folder that `save_pretrained` or a download wrote; nothing is fetched.

    Code that a folder brings is not run.

    Raises:
        FileNotFoundError: If the folder holds no model.
        ValueError: If transformers is not installed, cannot read the model, finds weights missing
            or knows no token grid of it.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json; give the local folder of a model of transformers"
        )
    preparation: dict[str, Any] = {}
    for name in reversed(PREPARATIONS):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text())
            preparation |= {key: found[key] for key in PREPARATION if found.get(key) is not None}
    with without_torchvision():
        try:
            from transformers import AutoModel
        except ImportError:
            raise ValueError(
                "this teacher needs the package transformers; pip install 'transformers>=5'"
            ) from None
        try:
            model, report = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                dtype="auto",
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            why = str(error).strip().splitlines()[0]
            raise ValueError(f"transformers cannot read the model in {folder}: {why}") from None
    missing = [k for k in report["missing_keys"] if not any(part in k for part in UNUSED)]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of its model, {missing[0]} among them; a "
            "teacher must be whole"
        )
    return HuggingFaceTeacher(model, f"{model.config.model_type}:{folder.name}", preparation)


@contextlib.contextmanager
def without_torchvision() -> Iterator[None]:
    """Hide torchvision: transformers imports it where it is installed, even if it is broken."""
    name = "torchvision"
    if name in sys.modules:  # it works, then
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        _forget_torchvision()
        yield
    finally:
        del sys.modules[name]


def _forget_torchvision() -> None:
    """Let transformers look again: what loaded it before may have let it see torchvision."""
    try:
        from transformers.utils import import_utils
    except ImportError:
        return
    for name in ("is_torchvision_available", "is_torchvision_v2_available"):
        getattr(getattr(import_utils, name, None), "cache_clear", lambda: None)()


def _resized(clip: Tensor, frames: int, size: int) -> Tensor:
    """Clips of so many frames and pixels: (b, c, t, h, w) -> (b, c, frames, size, size)."""
    b, _, t, h, w = clip.shape
    if frames != t:
        nearest = ((torch.arange(frames, device=clip.device) + 0.5) * t / frames).long()
        clip = clip[:, :, nearest.clamp(max=t - 1)]
    if (h, w) == (size, size):
        return clip
    flat = clip.transpose(1, 2).flatten(0, 1)
    flat = F.interpolate(flat, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return flat.view(b, frames, -1, size, size).transpose(1, 2)

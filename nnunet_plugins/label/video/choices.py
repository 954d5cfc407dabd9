"""What a request about a video may choose; everything else that it sends is left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_plugins.label.names import check_name
from nnunet_plugins.label.options import flag, learning_rate
from nnunet_plugins.label.video.adaptation import Adaptation

MOST_FRAMES = 10**7
"""Highest number of a frame that is looked at."""
MOST_STEPS = 1000
HIGHEST_RATE = 0.1


@dataclass(frozen=True)
class Choices:
    """Of a request to segment a video."""

    start: int
    end: int | None
    """None for the end of the video."""
    prompt: str | None
    """Tag of the label whose frames are the prompt; None for none, or one that is sent along."""
    frames: tuple[int, ...] | None
    """Frames of the prompt that count; None for those that are labelled."""
    how: Adaptation
    save_label: bool


def read_choices(params: Mapping[str, Any]) -> Choices:
    """Choices of a request's `params`.

    Raises:
        ValueError: If one cannot be.
    """
    frames = params.get("frames")
    if frames is not None:
        if not isinstance(frames, list) or not frames:
            raise ValueError("frames is a list of frames' numbers, counted from 0")
        frames = tuple(sorted({_whole({"frames": f}, "frames", 0, MOST_FRAMES) for f in frames}))
    prompt = params.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError("prompt is the tag of a label of this study, such as final")
    steps = _whole(params, "steps", Adaptation.steps, MOST_STEPS)
    rate = params.get("learning_rate", Adaptation.learning_rate)
    return Choices(
        start=_whole(params, "start", 0, MOST_FRAMES),
        end=_whole(params, "end", None, MOST_FRAMES),
        prompt=check_name(prompt, "a tag") if prompt else None,
        frames=frames,
        how=Adaptation(steps, learning_rate(rate, HIGHEST_RATE)),
        save_label=flag({"save_label": True, **params}, "save_label"),
    )


def _whole(params: Mapping[str, Any], key: str, default: Any, most: int) -> Any:
    value = params.get(key, default)
    if value is default:
        return value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{key} is a whole number from 0 to {most}")
    return value

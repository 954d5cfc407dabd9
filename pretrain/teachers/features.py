"""Features computed once and kept on disk, a file for each video, as a teacher.

A folder of features holds `teacher.json` (name and fingerprint of the teacher, and how its clips
were taken) and for each video `CONTENT.safetensors`, named by the digest of the video's content:
`tokens` (t', h', w', c) float16, `times` (t',) in frames of the video, and `stretches` (t',), the
usable stretch that each was computed in. Rows and columns cover the video's box within its black
borders, (top, left, bottom, right) in pixels, which the header says.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from pretrain.run_folder import whole_file

RECORD = "teacher.json"
PLACE = ("video", "frames", "box", "flipped")
"""What the teacher must be told of a clip: the video's number in the corpus, the numbers of the
clip's frames, what part of them it shows in pixels (top, left, bottom, right), and whether it is
flipped left to right."""


class FeatureTeacher:
    """Reads the features of each clip's place in its video, from disk.

    Args:
        folder: That `python -m pretrain teacher-features` wrote.
        contents: Digest of each video of the corpus, in the corpus's order.

    Raises:
        FileNotFoundError: If the folder holds no features.
        ValueError: If videos of the corpus have none, or the folder is damaged.
    """

    def __init__(self, folder: Path, contents: Sequence[str]) -> None:
        record = read_record(folder)
        missing = [one for one in contents if not feature_file(folder, one).is_file()]
        if missing:
            raise ValueError(
                f"{folder} has no features of {len(missing)} of the {len(contents)} videos of this "
                "corpus: it was made from other videos, or they changed; run python -m pretrain "
                "teacher-features on the corpus"
            )
        self.folder, self.contents = folder, list(contents)
        self.name: str = record["name"]
        self.fingerprint: str = record["fingerprint"]
        self.channels: int = record["channels"]

    def tokens(self, clip: Tensor, **place: Tensor) -> Tensor:
        """As `Teacher`, with `PLACE`: video (b,), frames (b, t), box (b, 4), flipped (b,).

        Raises:
            ValueError: If the place is not told, or a file is damaged.
        """
        if any(key not in place for key in PLACE):
            raise ValueError(
                "features on disk belong to places in videos, and the clips do not say theirs; "
                f"the dataset must give {', '.join(PLACE)}"
            )
        places = [place[key].cpu() for key in PLACE]
        return torch.stack([self._of_clip(*one) for one in zip(*places, strict=True)]).to(
            clip.device
        )

    def _of_clip(self, video: Tensor, frames: Tensor, box: Tensor, flipped: Tensor) -> Tensor:
        """Features of one clip: (t, h', w', c) float32."""
        file = feature_file(self.folder, self.contents[int(video)])
        try:
            with safe_open(file, "pt") as opened:
                covered = torch.tensor(json.loads(opened.metadata()["box"]), dtype=torch.float32)
                times, stretches = opened.get_tensor("times"), opened.get_tensor("stretches")
                before, after, share = neighbours(times, stretches, frames)
                first = int(before.min())
                tokens = opened.get_slice("tokens")[first : int(after.max()) + 1].float()
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} is damaged ({error}); delete it and run teacher-features again"
            ) from None
        share = share.view(-1, 1, 1, 1)
        tokens = torch.lerp(tokens[before - first], tokens[after - first], share)
        tokens = cut(tokens, covered, box.float())
        return tokens.flip(2) if bool(flipped) else tokens


def neighbours(times: Tensor, stretches: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Between which tokens each frame lies, and how far on the way from the first to the second.

    Both are of the usable stretch of the token that is nearest; at its ends they are the same.

    Args:
        times: (t',) rising.
        stretches: (t',) rising integers.
        frames: (t,) numbers of frames.
    """
    times, frames = times.double(), frames.double()
    nearest = (frames[:, None] - times).abs().argmin(1)
    same = stretches == stretches[nearest][:, None]
    indices = torch.arange(len(times)).expand_as(same)
    first = indices.masked_fill(~same, len(times)).amin(1)
    last = indices.masked_fill(~same, -1).amax(1)
    after = torch.searchsorted(times, frames)
    before = torch.minimum(torch.maximum(after - 1, first), last)
    after = torch.minimum(torch.maximum(after, first), last)
    gap = (times[after] - times[before]).clamp(min=1e-9)
    share = ((frames - times[before]) / gap).clamp(0, 1)
    return before, after, share.float()


def cut(tokens: Tensor, covered: Tensor, box: Tensor) -> Tensor:
    """Tokens over a part of what they cover, on as many rows and columns: (t, h', w', c) -> same.

    Args:
        tokens: Over the box `covered`.
        covered: (top, left, bottom, right) in pixels.
        box: The part, likewise; outside, the nearest tokens go on.
    """
    lines = []
    for axis, count in ((0, tokens.shape[1]), (1, tokens.shape[2])):
        inside = (torch.arange(count) + 0.5) / count
        pixels = box[axis] + inside * (box[axis + 2] - box[axis])
        lines.append(2 * (pixels - covered[axis]) / (covered[axis + 2] - covered[axis]) - 1)
    y, x = torch.meshgrid(*lines, indexing="ij")
    grid = torch.stack([x, y], dim=-1).expand(len(tokens), -1, -1, -1)
    features = F.grid_sample(
        tokens.movedim(-1, 1), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return features.movedim(1, -1)


def feature_file(folder: Path, content: str) -> Path:
    """Where the features of a video with this digest are."""
    return folder / f"{content}.safetensors"


def write_features(
    file: Path, tokens: Tensor, times: Tensor, stretches: Tensor, box: Sequence[int]
) -> None:
    """Write the features of one video, whole or not at all.

    Raises:
        ValueError: If a value is not finite, also as float16.
        OSError: If it cannot be written.
    """
    tokens = tokens.half()
    if not tokens.isfinite().all():
        raise ValueError(
            f"the teacher's features for {file.name} exceed float16 or are not finite; it cannot "
            "be kept on disk, use it directly"
        )
    tensors = {"tokens": tokens, "times": times.float(), "stretches": stretches.long()}
    contiguous = {name: x.cpu().contiguous() for name, x in tensors.items()}
    with whole_file(file) as opened:
        opened.write(save(contiguous, {"box": json.dumps(list(box))}))


def read_record(folder: Path) -> dict[str, Any]:
    """What `teacher.json` says.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {RECORD}; make features with python -m pretrain teacher-features"
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if any(key not in record for key in ("name", "fingerprint", "channels", "clips")):
            raise KeyError("name, fingerprint, channels or clips")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); make the features again") from None
    return record


def windows(start: int, stop: int, frames: int, stride: int) -> list[list[int]]:
    """Numbers of the frames of clips that cover a stretch side by side; the last may repeat some.

    Args:
        start: First frame of the stretch.
        stop: The one after its last.
        frames: Of a clip.
        stride: From one frame of a clip to the next.
    """
    numbers = list(range(start, stop, stride))
    count = math.ceil(len(numbers) / frames)
    padded = numbers + numbers[-1:] * (count * frames - len(numbers))
    return [padded[i * frames : (i + 1) * frames] for i in range(count)]

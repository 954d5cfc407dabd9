"""`python -m pretrain teacher-features`: the features of a teacher, computed once."""

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pretrain.run_folder import whole_file
from pretrain.teachers.features import (
    RECORD,
    feature_file,
    read_record,
    windows,
    write_features,
)
from pretrain.teachers.interface import Teacher
from pretrain.teachers.opening import KINDS, open_teacher
from pretrain.videos import ClipSettings, find_videos, first_pass
from pretrain.videos.first_pass import Kept
from pretrain.videos.open_videos import open_unchanged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("data", type=Path, nargs="+", help="folders of videos, or manifests")
    kinds = "; ".join(f"{kind}: {what}" for kind, what in KINDS.items() if kind != "features")
    parser.add_argument("--teacher", metavar="KIND:PATH", required=True, help=kinds)
    parser.add_argument("--out", type=Path, required=True, help="folder, a file for each video")
    parser.add_argument("--frames", type=int, default=16, help="that it sees at a time (16)")
    parser.add_argument("--stride", type=int, default=4, help="from one to the next (4)")
    parser.add_argument("--fps", type=float, help="frames a second, in place of a stride")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=(224, 224))
    parser.add_argument("--cache", type=Path, help="for what was seen of videos (in the folder)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (cpu)")


def run(args: argparse.Namespace) -> int:
    """Compute what is missing."""
    settings = ClipSettings(
        frames=args.frames, stride=args.stride, fps=args.fps, size=tuple(args.size)
    )
    teacher = open_teacher(args.teacher)
    findings = first_pass(find_videos(args.data), args.cache or args.out / "cache")
    for one in findings.left_out[:10]:
        print(f"left out: {one}")
    _start(args.out, teacher, settings)
    missing = [kept for kept in findings.kept if not feature_file(args.out, kept.content).exists()]
    for kept in tqdm(missing, desc="Teaching", unit="video", disable=None):
        tokens, times, stretches = video_features(kept, teacher, settings, args.device)
        file = feature_file(args.out, kept.content)
        write_features(file, tokens, times, stretches, kept.seen.box)
    print(
        f"Features of {len(findings.kept)} videos are in {args.out}, {len(missing)} of them new. "
        f"Learn from them with python -m pretrain endomamba ... --teacher "
        f"{shlex.quote(f'features:{args.out}')}"
    )
    return 0


def video_features(
    kept: Kept, teacher: Teacher, settings: ClipSettings, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """What the teacher says of a video, clip by clip over each usable stretch.

    Returns:
        Tokens (t', h', w', c), their times (t',) in frames, and the stretch of each (t',).
    """
    stride = settings.stride_of(kept.fps)
    tokens, times, stretches = [], [], []
    reader = open_unchanged(kept)
    try:
        for stretch, (start, stop) in enumerate(kept.seen.segments):
            for numbers in windows(start, stop, settings.frames, stride):
                clip = _clip(reader.read(sorted(set(numbers))), kept, settings)
                found = teacher.tokens(clip.to(device))[0].cpu()
                spread = numbers[0] + stride * _centres(len(found), settings.frames)
                inside = spread <= numbers[-1]  # what repeats the last frame is left out
                inside[0] = True
                tokens.append(found[inside])
                times.append(spread[inside])
                stretches += [stretch] * int(inside.sum())
    finally:
        reader.close()
    return torch.cat(tokens), torch.cat(times), torch.tensor(stretches)


def _centres(tokens: int, frames: int) -> Tensor:
    """Where the centres of so many tokens lie over so many frames, the first being at 0."""
    return (torch.arange(tokens) + 0.5) * frames / tokens - 0.5


def _clip(frames: Iterator[np.ndarray], kept: Kept, settings: ClipSettings) -> Tensor:
    """Frames within their borders as (1, 3, t, h, w) in [0, 1]; the last repeated to the length."""
    top, left, bottom, right = kept.seen.box
    size, bilinear = settings.size[::-1], Image.Resampling.BILINEAR
    shrunk = [
        np.asarray(Image.fromarray(frame).resize(size, bilinear, box=(left, top, right, bottom)))
        for frame in frames
    ]
    shrunk += shrunk[-1:] * (settings.frames - len(shrunk))
    return torch.from_numpy(np.stack(shrunk)).permute(3, 0, 1, 2)[None].float() / 255


def _start(folder: Path, teacher: Teacher, settings: ClipSettings) -> None:
    """Write who teaches, or see that it is the same as before.

    Raises:
        ValueError: If the folder holds features of another teacher, or of other clips.
    """
    plain = settings.plain()
    record = {
        "name": teacher.name,
        "fingerprint": teacher.fingerprint,
        "channels": teacher.channels,
        "clips": {key: plain[key] for key in ("frames", "stride", "fps", "size")},
    }
    if (folder / RECORD).exists():
        if read_record(folder) != record:
            raise ValueError(
                f"{folder} holds features of another teacher, or of clips taken otherwise; name "
                "another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / RECORD) as file:
        file.write(json.dumps(record, indent=2).encode())

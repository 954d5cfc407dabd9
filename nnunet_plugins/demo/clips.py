"""Generated clips that look like colonoscopy, with masks of their polyps: for demonstrations.

No patient data: every frame is drawn, so that the whole way from videos to a trained network runs
anywhere. A Dice reached here shows that the software works and says nothing about patients.

A camera with a lamp wanders over mucosa with folds, vessels and red spots. Polyps come into view
and leave it, and there are frames without any. Single frames mislead: bubbles drift before the
lens, frames are blurred, overexposed or dark for a moment, and polyps have the colour of mucosa;
but only they are raised, and shift against the ground when the camera moves.

Lengths are in units of a frame's shorter side. Frames are (h, w, 3) uint8, maps (y, x).
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.interpolate import CubicSpline
from tqdm import tqdm

from nnunet_plugins.data.clips import write_video
from nnunet_plugins.data.from_videos import appearing_folder

Map = NDArray[np.float32]
Frame = NDArray[np.uint8]

FPS = 8.0
EXTENT = 4.0
"""Side of the mucosa that the camera wanders over."""
MUCOSA = np.array([0.80, 0.42, 0.33], np.float32)
BLOOD = np.array([0.55, 0.12, 0.10], np.float32)
LAMP = np.array([1.0, 0.96, 0.90], np.float32)


@dataclass(frozen=True)
class Scene:
    """A piece of mucosa, `pixels` of it for each unit of length."""

    colour: Map
    """(y, x, 3), 0 to 1."""
    height: Map
    """(y, x), in units of length."""
    polyps: NDArray[np.bool_]
    """(y, x)"""
    centres: NDArray[np.float64]
    """Of the polyps, (n, 2), y before x."""
    tilt: NDArray[np.float64]
    """Slope of the mucosa as a whole, y before x."""
    pixels: int


@dataclass(frozen=True)
class Bubble:
    """A bubble before the lens, at a place of the frame and not of the mucosa."""

    start: int
    end: int
    place: NDArray[np.float64]
    """y, x at its start."""
    drift: NDArray[np.float64]
    """y, x per frame."""
    radius: float


def write_clips(
    folder: Path,
    *,
    clips: int = 16,
    frames: int = 24,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
) -> Path:
    """Write `videos/NAME.mp4` and `masks/NAME/FRAME.png` as `mambamed dataset from-videos` reads.

    Clip i depends on the seed and i only. Masks are 0 and 255. The folder appears when it is
    complete.

    Args:
        folder: What to create.
        clips: How many.
        frames: Of each clip.
        size: Height and width of a frame, even numbers.
        seed: Equal seeds draw equal frames.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If there would be no clip or no frame, or a side is odd or below 32.
    """
    if clips < 1 or frames < 1 or min(size) < 32 or any(side % 2 for side in size):
        raise ValueError(
            f"{clips} clips of {frames} frames of {size[1]} x {size[0]} pixels cannot be drawn; "
            "give at least one of each, and even sides from 32 pixels on"
        )
    with appearing_folder(Path(folder)) as partial:
        (partial / "videos").mkdir()
        for index in tqdm(range(clips), desc="Drawing", unit="clip", disable=None):
            name = f"clip_{index:03d}"
            masks = partial / "masks" / name
            masks.mkdir(parents=True)
            drawn = draw_clip(np.random.default_rng([seed, index]), frames, size)
            write_video(partial / "videos" / f"{name}.mp4", _with_masks_saved(drawn, masks), FPS)
    return Path(folder)


def draw_clip(
    rng: np.random.Generator, frames: int, size: Sequence[int]
) -> Iterator[tuple[Frame, NDArray[np.bool_]]]:
    """Frames (h, w, 3) of one clip and where they show polyps (h, w)."""
    scene = draw_scene(rng, pixels=min(size))
    poses = camera_path(rng, scene, frames)
    bubbles = [draw_bubble(rng, frames) for _ in range(rng.integers(2, 7))]
    troubles = draw_troubles(rng, frames)
    for index, (pose, (blur, exposure)) in enumerate(zip(poses, troubles, strict=True)):
        light, polyps = look(scene, pose, size)
        for bubble in bubbles:
            if bubble.start <= index < bubble.end:
                light = put_before(light, bubble, index - bubble.start)
        light = ndimage.gaussian_filter(light, (blur, blur, 0)) * exposure
        light += rng.normal(0, 0.008, light.shape)
        yield np.rint(255 * light.clip(0, 1) ** 0.8).astype(np.uint8), polyps


def draw_scene(rng: np.random.Generator, pixels: int) -> Scene:
    """Mucosa with folds, vessels and red spots, and one or two polyps."""
    side = round(EXTENT * pixels)
    y, x = np.indices((side, side), np.float32) / pixels
    smooth = [noise(rng, side, length * pixels) for length in (0.5, 0.12, 0.03)]
    bent = x * np.cos(a := rng.uniform(0, np.pi)) + y * np.sin(a) + 0.12 * smooth[0]
    folds = np.exp(-((np.sin(np.pi * bent / rng.uniform(0.9, 1.4)) / 0.22) ** 2))
    height = 0.05 * folds + 0.008 * smooth[0] + 0.003 * smooth[1] + 0.0006 * smooth[2]
    vessels = np.exp(-((noise(rng, side, 0.22 * pixels) / 0.07) ** 2)) * (smooth[0] > 0)
    spots = np.exp(4 * np.minimum(noise(rng, side, 0.14 * pixels) - 2.0, 0))
    tint = MUCOSA * rng.uniform(0.9, 1.1, 3)
    red = (0.35 * vessels + 0.3 * spots)[..., None]
    shade = (1 + 0.05 * smooth[0] + 0.05 * smooth[1] + 0.03 * smooth[2])[..., None]
    colour = (tint * (1 - red) + BLOOD * red) * shade
    polyps = np.zeros((side, side), bool)
    first = rng.uniform(1.3, EXTENT - 1.3, 2)
    turn = rng.uniform(0, 2 * np.pi)
    second = first + 0.75 * np.array([np.sin(turn), np.cos(turn)])
    centres = np.array([first, second])[: rng.integers(1, 3)]
    for centre in centres:
        bump, inside = draw_polyp(rng, y - centre[0], x - centre[1], smooth[1])
        height = height + bump
        paler = rng.uniform(0.9, 1.08) * (1 + 0.07 * noise(rng, side, 0.02 * pixels))
        own = tint * [1.0, rng.uniform(0.85, 1.0), rng.uniform(0.85, 1.0)] * paler[..., None]
        colour = np.where(inside[..., None], 0.25 * colour + 0.75 * own, colour)
        polyps |= inside
    tilt = rng.normal(0, 0.3, 2)
    return Scene(colour.astype(np.float32), height, polyps, centres, tilt, pixels)


def draw_polyp(
    rng: np.random.Generator, y: Map, x: Map, wobble: Map
) -> tuple[Map, NDArray[np.bool_]]:
    """A bump about the origin and where it is; its outline follows the wobble."""
    angle, radius = rng.uniform(0, np.pi), rng.uniform(0.13, 0.24)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = np.hypot(along / rng.uniform(1.0, 1.4), across) / (radius * (1 + 0.06 * wobble))
    dome = np.clip(1 - distance**2, 0, None) ** 0.75
    return radius * rng.uniform(0.45, 0.8) * dome, distance < 1


def noise(rng: np.random.Generator, side: int, length: float) -> Map:
    """Smooth noise of mean 0 and deviation 1, correlated over `length` pixels."""
    nodes = max(4, round(side / length))
    coarse = rng.standard_normal((nodes, nodes)).astype(np.float32)
    fine = ndimage.zoom(coarse, side / nodes, order=3, mode="nearest", grid_mode=True)
    fine = fine[:side, :side]
    return (fine - fine.mean()) / fine.std()


def camera_path(rng: np.random.Generator, scene: Scene, frames: int) -> NDArray[np.float64]:
    """Where the camera is at each frame: y, x, zoom and angle, (t, 4).

    From beside a polyp to it, on to the next one, and away.
    """
    middle = scene.centres[rng.permutation(len(scene.centres))]
    away = [_beside(rng, middle[0]), _beside(rng, middle[-1])]
    stops = np.array([away[0], *(c + rng.normal(0, 0.12, 2) for c in middle), away[1]])
    start = rng.uniform(0, 0.3)
    times = np.array([start, *np.linspace(0.4, 0.65, len(middle)), 1.0])
    t = np.linspace(start * rng.uniform(0, 1), 1, frames)
    place = CubicSpline(times, stops)(t).clip(0.9, EXTENT - 0.9)
    place += 0.02 * _wandering(rng, frames, 2)
    zoom = 0.9 + 0.08 * _wandering(rng, frames, 1)
    angle = rng.uniform(0, 2 * np.pi) + 0.15 * _wandering(rng, frames, 1)
    return np.concatenate([place, zoom, angle], axis=1)


def look(
    scene: Scene, pose: NDArray[np.float64], size: Sequence[int]
) -> tuple[Map, NDArray[np.bool_]]:
    """What the camera sees in its own light: light (h, w, 3), and where polyps are (h, w)."""
    eye = (np.indices(size) - (np.array(size)[:, None, None] - 1) / 2) / min(size)
    cos, sin = np.cos(pose[3]), np.sin(pose[3])
    turned = pose[2] * np.stack([cos * eye[0] + sin * eye[1], cos * eye[1] - sin * eye[0]])
    ground, height = turned, 0.0
    for _ in range(3):  # what is nearer to the lens appears farther from the centre
        at = (pose[:2, None, None] + ground) * scene.pixels
        height = ndimage.map_coordinates(scene.height, at, order=1, mode="nearest")
        ground = turned * (1 - height)
    slopes = np.stack(np.gradient(height, 1 / min(size))) + scene.tilt[:, None, None]
    normal = np.stack([-slopes[0], -slopes[1], np.ones(size)])
    normal /= np.linalg.norm(normal, axis=0)
    lamp = np.stack([-eye[0], -eye[1], np.full(size, 0.8) - height])
    distance = np.linalg.norm(lamp, axis=0)
    facing = ((normal * lamp).sum(0) / distance).clip(0, 1)
    colour = np.stack(
        [
            ndimage.map_coordinates(scene.colour[..., c], at, order=1, mode="nearest")
            for c in range(3)
        ],
        axis=-1,
    )
    vignette = 1 / (1 + np.exp((np.linalg.norm(eye, axis=0) - 0.62) * 40))
    light = facing * (0.8 / distance) ** 2 * vignette
    glints = 0.9 * facing**90 * vignette * (distance > 0)
    image = colour * LAMP * (0.15 * vignette + 0.95 * light)[..., None] + glints[..., None] * LAMP
    nearest = np.rint(at).astype(int).clip(0, len(scene.polyps) - 1)
    return image.astype(np.float32), scene.polyps[nearest[0], nearest[1]] & (vignette > 0.5)


def draw_bubble(rng: np.random.Generator, frames: int) -> Bubble:
    """A bubble that is there for a few frames."""
    start = int(rng.integers(-3, frames))
    place = rng.uniform(-0.5, 0.5, 2)
    drift = rng.normal(0, 0.02, 2)
    return Bubble(start, start + int(rng.integers(2, 9)), place, drift, rng.uniform(0.03, 0.12))


def put_before(light: Map, bubble: Bubble, age: int) -> Map:
    """An image with a bubble before it: a bright rim, a glint, and little changed inside."""
    size = light.shape[:2]
    y, x = (np.indices(size) - (np.array(size)[:, None, None] - 1) / 2) / min(size)
    dy, dx = (axis - at for axis, at in zip((y, x), bubble.place + age * bubble.drift, strict=True))
    distance = np.hypot(dy, dx) / bubble.radius
    rim = np.exp(-(((distance - 0.93) / 0.08) ** 2))
    glint = np.exp(-((np.hypot(dy + 0.4 * bubble.radius, dx + 0.3 * bubble.radius)) ** 2)
                   / (0.15 * bubble.radius) ** 2)  # fmt: skip
    dimmed = light * (1 - 0.12 * (distance < 1) * distance**2)[..., None]
    shine = (0.25 * rim * (light.mean(-1) > 0.02) + 0.8 * glint)[..., None]
    return (dimmed + shine * LAMP).astype(np.float32)


def draw_troubles(rng: np.random.Generator, frames: int) -> list[tuple[float, float]]:
    """Blur in pixels and exposure of each frame; now and then both are bad for a moment."""
    blur, exposure = np.full(frames, 0.5), 1 + 0.04 * _wandering(rng, frames, 1)[:, 0]
    for _ in range(1 + frames // 12):
        first, lasting = rng.integers(0, frames), rng.integers(1, 3)
        if rng.random() < 0.6:
            blur[first : first + lasting] = rng.uniform(1.5, 3.0)
        else:
            exposure[first : first + lasting] *= rng.choice([0.45, 1.7])
    return list(zip(blur.tolist(), exposure.tolist(), strict=True))


def _beside(rng: np.random.Generator, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """A place one and a half units away, inside the mucosa: no polyp there is in view."""
    angles = rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, 8, endpoint=False)
    ring = place + 1.5 * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    outside = np.abs(ring - ring.clip(0.9, EXTENT - 0.9)).sum(1)
    return ring[np.argmin(outside)]


def _wandering(rng: np.random.Generator, frames: int, axes: int) -> NDArray[np.float64]:
    """Smooth noise over time, deviation about 1, (t, axes)."""
    knots = max(2, frames // 5 + 2)
    spline = CubicSpline(np.linspace(0, 1, knots), rng.standard_normal((knots, axes)))
    return spline(np.linspace(0, 1, frames))


def _with_masks_saved(
    drawn: Iterator[tuple[Frame, NDArray[np.bool_]]], folder: Path
) -> Iterator[Frame]:
    """The frames alone, while each one's mask is written."""
    for number, (frame, polyps) in enumerate(drawn, start=1):
        Image.fromarray(polyps * np.uint8(255)).save(folder / f"{number:04d}.png")
        yield frame


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m nnunet_plugins.demo.clips FOLDER`."""
    parser = argparse.ArgumentParser(description="Draw clips that look like colonoscopy.")
    parser.add_argument("folder", type=Path, help="folder to create")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=24, help="of each clip")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 160), metavar=("H", "W"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    folder = write_clips(
        given.folder, clips=given.clips, frames=given.frames, size=tuple(given.size),
        seed=given.seed,
    )  # fmt: skip
    print(f"{folder}: next, mambamed dataset from-videos {folder} --id 701 --name Clips "
          "--labels polyp")  # fmt: skip


if __name__ == "__main__":
    main()

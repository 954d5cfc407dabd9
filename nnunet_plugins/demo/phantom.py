"""A small nnU-Net raw dataset of generated, abdomen-like CT volumes, for demonstrations and tests.

No patient data: every volume is drawn from ellipsoids, tubes and noise, so that the whole way from
raw data to a trained network runs anywhere in minutes. A Dice reached here shows that the software
works and says nothing about clinical performance.

The anatomy is coarse but keeps what makes CT hard: liver and spleen share their Hounsfield units
and differ by place, a contrast phase changes them from patient to patient, a vena cava without
label lies beside the aorta, stomach and bowel touch everything, and organs are bent, blurred by
partial volume and covered by correlated noise.

Coordinates are millimetres from the centre of the body: x to the patient's left, y to the back, z
to the head, which is the LPS frame of SimpleITK. Arrays are (z, y, x).
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidneys": 3, "aorta": 4}
FOLDS = 5

_Float = NDArray[np.float32]
_Triple = tuple[float, float, float]
_SUPERSAMPLING = 2
_CAVITY = (125.0, 88.0)
"""Half axes of the abdominal cavity in mm, left-right and front-back."""
_MUSCLE = 13.0
"""Thickness of the abdominal wall in mm."""

# Mean Hounsfield units, without contrast and in the portal venous phase; patients vary around them.
_NATIVE = {
    "liver": 60, "spleen": 50, "kidneys": 32, "aorta": 42, "cava": 40, "heart": 42, "muscle": 52,
    "stomach": 30, "bowel": 35, "gallbladder": 8, "gas": -850, "lung": -820, "fat": -100,
    "bone": 190, "rib": 330, "cord": 30, "skin": 10,
}  # fmt: skip
_PORTAL_VENOUS = _NATIVE | {
    "liver": 105, "spleen": 115, "kidneys": 165, "aorta": 150, "cava": 130, "heart": 140,
    "muscle": 62, "stomach": 38, "bowel": 70,
}  # fmt: skip


@dataclass(frozen=True)
class _Blob:
    """An ellipsoid; with an infinite radius, a tube."""

    tissue: str
    centre: _Triple
    radii: _Triple
    tilt: float = 0.0
    """Degrees by which the x axis is turned towards the back."""


# Later blobs lie over earlier ones.
_ORGANS = (
    _Blob("muscle", (34, 58, -60), (19, 20, 75)),
    _Blob("muscle", (-34, 58, -60), (19, 20, 75)),
    _Blob("stomach", (48, -34, 22), (38, 32, 34), 20),
    _Blob("gas", (48, -56, 22), (20, 8, 18)),
    _Blob("liver", (-62, -6, 14), (56, 66, 66), -10),
    _Blob("liver", (-8, -46, 30), (52, 28, 30), 8),
    _Blob("spleen", (88, 22, 24), (25, 46, 42), 15),
    _Blob("gallbladder", (-38, -48, -28), (13, 15, 22)),
    _Blob("kidneys", (-62, 46, -34), (24, 27, 48), 20),
    _Blob("kidneys", (60, 46, -20), (24, 27, 48), -20),
    _Blob("cava", (-21, 28, 0), (12, 10, np.inf)),
    _Blob("aorta", (9, 28, 0), (10, 10, np.inf)),
)


@dataclass(frozen=True)
class _Patient:
    """What varies from case to case. Lengths in mm, intensities in Hounsfield units."""

    shape: tuple[int, int, int]
    spacing: _Triple
    """Both in array order (z, y, x)."""
    scale: _Triple
    shift: _Triple
    fat: float
    noise: float
    tissues: dict[str, float]
    blobs: tuple[_Blob, ...]


def write_phantom_dataset(folder: Path, *, cases: int = 20, seed: int = 0) -> Path:
    """Write a complete nnU-Net raw dataset of phantoms and return its folder.

    It holds `imagesTr/{case}_0000.nii.gz` (int16 Hounsfield units), `labelsTr/{case}.nii.gz`,
    `dataset.json`, and `splits_final.json`, which nnU-Net reads once it is copied to the
    preprocessed folder. Case i depends on `seed` and i only. The folder appears when it is
    complete: a killed run leaves at most a hidden folder `.{name}.{pid}.partial` beside it.

    Args:
        folder: What to create; for nnU-Net, `nnUNet_raw/Dataset<three digits>_<name>`.
        cases: Number of volumes, at least two.
        seed: Equal seeds give equal voxels.

    Raises:
        ValueError: `cases` is below two, so that nothing is left to validate on.
        FileExistsError: `folder` exists and is not empty.
    """
    if cases < 2:
        raise ValueError(
            f"cases is {cases}; it must be at least 2, one to train and one to validate"
        )
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists; delete it or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    try:
        for name in ("imagesTr", "labelsTr"):
            (partial / name).mkdir(parents=True)
        names = [f"phantom_{index:03d}" for index in range(cases)]
        for index, name in enumerate(tqdm(names, desc="phantoms", unit="case")):
            _write_case(partial, name, np.random.default_rng([seed, index]))
        _write_json(partial / "splits_final.json", _splits(names))
        _write_json(partial / "dataset.json", _dataset_json(cases, seed))
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_case(folder: Path, name: str, rng: np.random.Generator) -> None:
    patient = _draw_patient(rng)
    files = (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz")
    for file, array in zip(files, _render(patient, rng), strict=True):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(patient.spacing[::-1])
        sitk.WriteImage(image, str(folder / file), useCompression=True)


def _splits(names: list[str]) -> list[dict[str, list[str]]]:
    """Five folds; with fewer than five cases a case is validated on in more than one."""
    folds = []
    for fold in range(FOLDS):
        hidden = names[fold::FOLDS] or [names[fold % len(names)]]
        folds.append({"train": [name for name in names if name not in hidden], "val": hidden})
    return folds


def _dataset_json(cases: int, seed: int) -> dict[str, object]:
    return {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "name": "Generated abdominal phantoms",
        "description": "No patient data; says nothing about clinical performance.",
        "reference": f"mambamed, nnunet_plugins/demo/phantom.py, seed {seed}",
        "licence": "Generated by mambamed; free of rights (CC0-1.0)",
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _draw_patient(rng: np.random.Generator) -> _Patient:
    means = _NATIVE if rng.random() < 0.35 else _PORTAL_VENOUS
    tissues = {name: hu + rng.normal(0, 3 + 0.07 * abs(hu)) for name, hu in means.items()}
    tissues |= {name: means[name] + rng.normal(0, 6) for name in ("gas", "lung", "fat")}
    in_plane = rng.uniform(5.0, 5.5)
    return _Patient(
        shape=(int(rng.integers(22, 28)), int(rng.integers(46, 55)), int(rng.integers(56, 66))),
        spacing=(round(rng.uniform(6.2, 7.2), 2), round(in_plane, 2), round(in_plane, 2)),
        scale=tuple(rng.normal(1, 0.05) * rng.normal(1, 0.03, size=3)),
        shift=tuple(rng.normal(0, (5, 5, 8))),
        fat=rng.uniform(8, 26),
        noise=rng.uniform(12, 22),
        tissues=tissues,
        blobs=(*_draw_bowel(rng), *(_vary(blob, rng) for blob in _ORGANS)),
    )


def _vary(blob: _Blob, rng: np.random.Generator) -> _Blob:
    """The blob of another patient: moved by millimetres, resized by percents, turned by degrees."""
    spread = 2.0 if np.isinf(blob.radii[2]) else 5.0
    centre = tuple(c + rng.normal(0, spread) for c in blob.centre)
    size = rng.normal(1, 0.06)
    radii = tuple(r * size * rng.normal(1, 0.05) for r in blob.radii)
    return _Blob(blob.tissue, centre, radii, blob.tilt + rng.normal(0, 8))


def _draw_bowel(rng: np.random.Generator) -> list[_Blob]:
    loops = []
    for _ in range(rng.integers(9, 15)):
        centre = (rng.uniform(-85, 85), rng.uniform(-62, 10), rng.uniform(-95, -25))
        radii = (rng.uniform(13, 26), rng.uniform(11, 19), rng.uniform(11, 22))
        loops.append(_Blob("bowel", centre, radii, rng.uniform(-40, 40)))
        if rng.random() < 0.4:  # gas rises: to the front of a patient on the back
            top = (centre[0], centre[1] - 0.45 * radii[1], centre[2])
            loops.append(_Blob("gas", top, tuple(0.5 * r for r in radii)))
    return loops


def _render(
    patient: _Patient, rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw on a finer grid and average it down, so that borders carry partial volume."""
    shape = tuple(_SUPERSAMPLING * n for n in patient.shape)
    x, y, z = _anatomical_coordinates(patient, shape, rng)
    fine, labels = _draw_body(patient, x, y, z, _smooth_noise(shape, (5, 9, 11), rng))
    shares = np.stack([_average(labels == label) for label in LABELS.values()])
    hounsfield = ndimage.gaussian_filter(_average(fine), (0.3, 0.5, 0.5))
    grain = ndimage.gaussian_filter(rng.standard_normal(patient.shape, np.float32), (0.2, 0.6, 0.6))
    hounsfield += patient.noise * grain / grain.std()
    hounsfield = np.clip(np.rint(hounsfield), -1024, 3071).astype(np.int16)
    return hounsfield, shares.argmax(axis=0).astype(np.uint8)


def _average(fine: NDArray) -> _Float:
    s = _SUPERSAMPLING
    d, h, w = (n // s for n in fine.shape)
    return fine.reshape(d, s, h, s, w, s).mean(axis=(1, 3, 5), dtype=np.float32)


def _anatomical_coordinates(
    patient: _Patient, shape: tuple[int, ...], rng: np.random.Generator
) -> list[_Float]:
    """x, y, z of every voxel in the mean anatomy: the patient's, unscaled and unbent."""
    axes = [
        ((np.arange(n) + 0.5) / n - 0.5) * n * mm / _SUPERSAMPLING
        for n, mm in zip(shape, patient.spacing, strict=True)
    ]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    straight = zip((x, y, z), patient.shift, patient.scale, strict=True)
    return [
        ((position - shift) / scale + 3.0 * _smooth_noise(shape, (5, 7, 8), rng)).astype(np.float32)
        for position, shift, scale in straight
    ]


def _smooth_noise(
    shape: tuple[int, ...], nodes: tuple[int, int, int], rng: np.random.Generator
) -> _Float:
    """Unit-variance noise at `nodes` points, splines between them."""
    coarse = rng.standard_normal(nodes).astype(np.float32)
    zoom = [n / m for n, m in zip(shape, nodes, strict=True)]
    return ndimage.zoom(coarse, zoom, order=3, mode="nearest", grid_mode=True)


def _draw_body(
    patient: _Patient, x: _Float, y: _Float, z: _Float, texture: _Float
) -> tuple[_Float, NDArray[np.uint8]]:
    """Hounsfield units and labels, both on the fine grid."""
    hounsfield = np.full(x.shape, -1000, np.float32)
    labels = np.zeros(x.shape, np.uint8)

    def paint(tissue: str, where: NDArray[np.bool_]) -> None:
        hounsfield[where] = patient.tissues[tissue]
        labels[where] = LABELS.get(tissue, 0)

    def inside(margin: float) -> NDArray[np.bool_]:
        return (x / (_CAVITY[0] + margin)) ** 2 + (y / (_CAVITY[1] + margin)) ** 2 < 1

    cavity = inside(0)
    paint("skin", inside(_MUSCLE + patient.fat + 3))
    paint("fat", inside(_MUSCLE + patient.fat))
    paint("muscle", inside(_MUSCLE))
    slant = np.cos(2 * np.pi * (z - 0.35 * np.abs(x) + 0.3 * y) / 30)
    paint("rib", inside(7) & ~inside(0) & (slant > 0.55) & (z > -30) & (np.abs(x) > 35))
    mesentery = patient.tissues["fat"] + 105 / (1 + np.exp(-3 * texture))
    hounsfield[cavity] = mesentery[cavity]
    for blob in patient.blobs:
        paint(blob.tissue, _inside_blob(blob, x, y, z) & cavity)
    dome = 74 - 36 * (((np.abs(x) - 62) / 66) ** 2 + (y / 80) ** 2)
    paint("lung", cavity & (z > dome) & (labels != LABELS["aorta"]))
    paint("heart", _inside_blob(_Blob("heart", (14, -26, 104), (52, 44, 44)), x, y, z) & cavity)
    disc = np.cos(2 * np.pi * z / 34) < -0.8
    paint("bone", _inside_blob(_Blob("bone", (0, 88, 0), (17, 15, np.inf)), x, y, z))
    vertebra = _inside_blob(_Blob("rib", (0, 62, 0), (21, 17, np.inf)), x, y, z)
    paint("rib", vertebra & ~disc)
    paint("bone", _inside_blob(_Blob("bone", (0, 62, 0), (17, 13, np.inf)), x, y, z) & ~disc)
    paint("muscle", vertebra & disc)
    paint("cord", _inside_blob(_Blob("cord", (0, 84, 0), (8, 7, np.inf)), x, y, z))
    soft = hounsfield > -200
    hounsfield[soft] += 5 * texture[soft]
    return hounsfield, labels


def _inside_blob(blob: _Blob, x: _Float, y: _Float, z: _Float) -> NDArray[np.bool_]:
    dx, dy, dz = x - blob.centre[0], y - blob.centre[1], z - blob.centre[2]
    cos, sin = np.cos(np.radians(blob.tilt)), np.sin(np.radians(blob.tilt))
    across, along = cos * dx + sin * dy, cos * dy - sin * dx
    rx, ry, rz = blob.radii
    return (across / rx) ** 2 + (along / ry) ** 2 + (dz / rz) ** 2 < 1

"""Made videos on disk, in every format that the evaluation reads."""

import nibabel
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_nifti():
    """Write (t, h, w) as nnU-Net does."""

    def write(path, array):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array.T, np.eye(4)), path)

    return write


@pytest.fixture
def write_pngs():
    """Write a frame a file, frame0.png and so on if there are no names."""

    def write(folder, array, names=None):
        folder.mkdir(parents=True, exist_ok=True)
        for i, frame in enumerate(array):
            Image.fromarray(frame).save(folder / f"{names[i] if names else f'frame{i}'}.png")

    return write


@pytest.fixture
def videos():
    """Truth and prediction by name, (t, h, w) of 0 and 1: one perfect, one empty, one shifted."""
    y, x = np.indices((24, 32))
    truth, prediction = {}, {}
    for index, name in enumerate(("perfect", "empty", "shifted")):
        frames = [(y - 9) ** 2 + (x - 10 - t - index) ** 2 < 36 for t in range(12)]
        truth[name] = np.stack(frames).astype(np.uint8)
        truth[name][5] = 0
        changed = {"perfect": truth[name], "empty": np.zeros_like(truth[name])}
        prediction[name] = changed.get(name, np.roll(truth[name], 3, axis=2))
    prediction["shifted"][5, :2, :3] = 1
    return truth, prediction


@pytest.fixture
def folders(videos, tmp_path, write_nifti):
    """The same as folders of NIfTI."""
    for what, by_name in zip(("truth", "prediction"), videos, strict=True):
        for name, array in by_name.items():
            write_nifti(tmp_path / what / f"{name}.nii.gz", array)
    return tmp_path / "prediction", tmp_path / "truth"

"""What is served: bundles by name or folder, and nnU-Net results made into one."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from nnunet_plugins.bundle.export import export_bundle
from nnunet_plugins.label.names import check_name
from nnunet_plugins.label.served import ServedBundle


def bundle_folder(name: str) -> Path:
    """Folder of a bundle: one that is named, or that of the project.

    Raises:
        FileNotFoundError: If there is none.
    """
    here = Path(__file__).parents[1]
    for folder in (
        Path(name),
        here / "bundle" / "templates" / name,
        here.parent / "bundles" / name,
    ):
        if (folder / "configs" / "inference.json").is_file():
            return folder.resolve()
    raise FileNotFoundError(
        f"there is no bundle {name!r}; name the folder of one, or hymamba, vivim or endomamba"
    )


def app_folder() -> Path:
    """The folder that MONAI Label loads as its app."""
    here = Path(__file__).parents[1]
    installed = here / "bundle" / "templates" / "monailabel_app"
    return installed if installed.is_dir() else here.parent / "bundles" / "monailabel_app"


def open_bundles(names: Sequence[str]) -> dict[str, ServedBundle]:
    """Bundles by the name of their folders.

    Raises:
        FileNotFoundError: If one does not exist.
        ValueError: If two have one name, or one gives no masks.
    """
    found: dict[str, ServedBundle] = {}
    for name in names:
        bundle = ServedBundle(bundle_folder(name))
        if check_name(bundle.name, "a model") in found:
            raise ValueError(f"two bundles are called {bundle.name}; rename the folder of one")
        found[bundle.name] = bundle
    return found


def bundle_of_results(results: Path, cache: Path) -> ServedBundle:
    """A folder of nnU-Net results, as a bundle that predicts what `nnUNetv2_predict` does.

    The bundle lies in the cache, and is made again when a checkpoint has changed. All trained
    folds make one ensemble.

    Args:
        results: `nnUNet_results/DatasetXXX_Name/Trainer__Plans__configuration`.
        cache: Folder for bundles made so.

    Raises:
        FileNotFoundError: If there are no results.
        ValueError: If a checkpoint cannot be read or does not fit.
    """
    results = Path(results).resolve()
    files = sorted(results.glob("fold_*/checkpoint_final.pth"))
    facts = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(repr((str(results), facts)).encode()).hexdigest()[:12]
    name = results.parent.name or results.name
    folder = cache / f"{name}_{key}"
    if not (folder / "models" / "model.pt").is_file():
        export_bundle(results, folder, overwrite=folder.is_dir())
    for other in cache.glob(f"{name}_*"):
        if other != folder:
            shutil.rmtree(other)
    return ServedBundle(folder, name)

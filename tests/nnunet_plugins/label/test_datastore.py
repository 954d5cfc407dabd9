"""The folder of studies: what cannot be served is passed over, and what is watched."""

import logging
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_plugins.label.environment import make_private
from tests.nnunet_plugins.label.conftest import needs_monai_label, write_studies

pytestmark = needs_monai_label


@pytest.fixture
def studies(tmp_path):
    """Three studies, one of them a link that leads out, and one that is labelled."""
    from nnunet_plugins.label.server.datastore import Studies

    write_studies(tmp_path / "elsewhere", 2)
    folder = write_studies(tmp_path / "studies", 2, labelled=1)
    (folder / "leads_out.nii.gz").symlink_to(tmp_path / "elsewhere/study_1.nii.gz")
    (folder / "leads_in.nii.gz").symlink_to(folder / "study_1.nii.gz")
    found = Studies(str(folder), watch=False)
    assert set(found.get_unlabeled_images()) == {"study_1", "leads_out", "leads_in"}
    return found


def test_links_that_lead_out_are_never_chosen(studies):
    from nnunet_plugins.label.server.tasks import RandomStudy

    assert set(studies.open_studies()) == {"study_1", "leads_in"}
    chosen = [RandomStudy()({}, studies)["id"] for _ in range(60)]
    assert set(chosen) == {"study_1", "leads_in"}
    for name in ("study_1", "leads_in"):
        Path(studies.get_image_uri(name)).unlink(missing_ok=True)
    assert RandomStudy()({}, studies) is None


def test_links_that_lead_out_do_not_hide_the_least_sure(studies, tmp_path):
    from nnunet_plugins.label.server.tasks import UncertainStudy
    from nnunet_plugins.label.shelf import digest

    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    figures = {"study_1": 0.2, "leads_in": 0.3}

    def infer(request: dict) -> dict:
        figure = {"value": figures[request["image"]], "weights": digest(weights)}
        studies.update_image_info(request["image"], {"uncertainty": {"tiny": figure}})
        return {"file": None}

    task = SimpleNamespace(
        shelf=SimpleNamespace(served=weights), bundle=SimpleNamespace(of_videos=False)
    )
    found = UncertainStudy({"tiny": task}, infer)({}, studies)
    assert (found["id"], found["uncertainty"], found["not_yet_seen"]) == ("leads_in", 0.3, 0)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_new_files_are_found_and_the_own_folder_is_not_watched(tmp_path, monkeypatch, caplog):
    import watchdog.events

    from nnunet_plugins.label.server.datastore import Studies

    seen = []
    inner = watchdog.events.PatternMatchingEventHandler.dispatch
    monkeypatch.setattr(
        watchdog.events.PatternMatchingEventHandler, "dispatch",
        lambda self, event: seen.append(event.src_path) or inner(self, event),
    )  # fmt: skip
    caplog.set_level(logging.WARNING)
    folder = write_studies(tmp_path / "studies", 1)
    own = folder / ".mambamed/models/tiny/training"
    own.mkdir(parents=True)
    source = write_studies(tmp_path / "source", 3)
    found = Studies(str(folder), watch=True)
    for number in range(50):
        (own / f"{number}.nii.gz").write_bytes(b"on its way")
        (own / f"{number}.nii.gz").unlink()
    (source / "study_1.nii.gz").rename(folder / "study_1.nii.gz")
    until(lambda: "study_1" in found.list_images())
    label = folder / "labels/new_tag/study_1.nii.gz"
    label.parent.mkdir()
    (source / "study_2.nii.gz").rename(label)
    until(lambda: "new_tag" in found.get_labels_by_image_id("study_1"))
    (folder / "study_0.nii.gz").unlink()
    until(lambda: found.list_images() == ["study_1"])
    assert seen
    assert not [path for path in seen if ".mambamed" in path]
    assert caplog.records == []


def test_the_log_and_its_folder_are_private(tmp_path):
    from nnunet_plugins.label.server.start import PrivateLog

    folder = tmp_path / ".mambamed"
    folder.mkdir(mode=0o755)
    make_private(folder)
    make_private(folder / "logs")
    file = folder / "logs/server.log"
    file.touch(mode=0o644)
    log = PrivateLog(file, maxBytes=10, backupCount=2)
    for _ in range(3):
        log.emit(logging.makeLogRecord({"msg": "Adding New Image: a_name"}))
    log.close()
    assert len(list(file.parent.iterdir())) == 3
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert set(modes.values()) == {0o700, 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes[file.parent] == 0o700


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(PermissionError, match="is another user's"):
        make_private(tmp_path)

"""MONAI Label's folder of studies, from which nothing leads out and in which nothing is half."""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import (
    DataModel,
    ImageLabelModel,
    LocalDatastore,
    LocalDatastoreModel,
)
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from watchdog.events import PatternMatchingEventHandler
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

from nnunet_plugins.label.names import VIDEOS, VOLUMES, check_name, confined, ending_of, is_video
from nnunet_plugins.label.shelf import write_text
from nnunet_plugins.label.training import LabelledStudy
from nnunet_plugins.label.uploads import check_image, check_label
from nnunet_plugins.label.volumes import check_alone

FINAL = "final"
"""Tag of labels that a person has finished."""

logger = logging.getLogger(__name__)


class Studies(LocalDatastore):
    """Studies and labels in a folder.

    Its list, `datastore_v2.json`, is changed by one at a time, of threads and processes, and always
    from its newest version; it and every file appear whole or not at all. Files that links lead out
    of the folder to are not served.

    Args:
        folder: Of the studies.
        watch: Look for files that others put there.
    """

    def __init__(self, folder: str, watch: bool = True) -> None:
        self._threads = threading.RLock()
        self._root = Path(folder).resolve()
        self._file_lock = FileLock(self._root / ".lock")
        self._stamp: tuple[int, ...] = ()
        endings = [f"*{ending}" for ending in VOLUMES + VIDEOS]
        super().__init__(str(self._root), extensions=endings, auto_reload=False)
        if watch:
            self._watch([f"**/{ending}" for ending in endings])

    @property
    def _datastore(self) -> LocalDatastoreModel:
        """The list, read again when another process has changed it."""
        with self._threads:
            self._init_from_datastore_file()
            return self._list

    @_datastore.setter
    def _datastore(self, content: LocalDatastoreModel) -> None:
        self._list = content

    def get_image_uri(self, image_id: str) -> str:
        """File of a study, to be read.

        Raises:
            ImageNotFoundException: If there is no such study.
            ValueError: If a link leads out of the folder, or a header to another file.
        """
        return str(_readable(self.place(image_id)))

    def place(self, image_id: str) -> Path:
        """Where the file of a study is, whatever it holds.

        Raises:
            ImageNotFoundException: If there is no such study.
            ValueError: If a link leads out of the folder.
        """
        entry = self._datastore.objects.get(image_id)
        if entry is None:
            raise ImageNotFoundException(f"there is no study {image_id[:80]!r}; GET /datastore/")
        return confined(self._root, self._filename(image_id, entry.image.ext))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """File of a label, to be read.

        Raises:
            LabelNotFoundException: If there is no such label.
            ValueError: If a link leads out of the folder, or a header to another file.
        """
        label = self._datastore.label(label_id, label_tag)
        if label is None:
            raise LabelNotFoundException(
                f"the study {label_id[:80]!r} has no label with the tag {label_tag[:80]!r}"
            )
        name = self._filename(label_id, label.ext)
        return str(_readable(confined(self._root, "labels", label_tag, name)))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of a study, but not where its file is."""
        self.get_image_uri(image_id)
        return json.loads(json.dumps(self._datastore.objects[image_id].image.info))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Move a received file to its place and give the study's name.

        Raises:
            FileExistsError: If there is a study of that name.
            ValueError: If the name or the file cannot be taken.
        """
        file = Path(image_filename)
        ending = ending_of(file.name, VOLUMES + VIDEOS)
        name = check_name(image_id, "a study")
        check_image(file)
        target = confined(self._root, f"{name}{ending}")
        with self._change():
            if name in self._datastore.objects or target.exists():
                raise FileExistsError(f"there is a study {name!r} already; choose another name")
            os.replace(file, target)
            info = image_info | {"ts": int(time.time()), "name": target.name}
            self._datastore.objects[name] = ImageLabelModel(image=DataModel(info=info, ext=ending))
        return name

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Move a received or predicted label to its place and give its name, the study's.

        Raises:
            ImageNotFoundException: If there is no such study.
            ValueError: If the tag or the file cannot be taken.
        """
        file, image = Path(label_filename), Path(self.get_image_uri(image_id))
        ending = ending_of(file.name, VOLUMES)
        tag = check_name(label_tag, "a tag")
        check_label(file, image)
        target = confined(self._root, "labels", tag, f"{image_id}{ending}")
        with self._change():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            info = label_info | {"ts": int(time.time()), "name": target.name}
            labels = self._datastore.objects[image_id].labels
            before = labels.get(tag)
            labels[tag] = DataModel(info=info, ext=ending)
            if before is not None and before.ext != ending:
                target.with_name(f"{image_id}{before.ext}").unlink(missing_ok=True)
        return image_id

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of a study."""
        with self._change():
            self.get_image_uri(image_id)
            self._datastore.objects[image_id].image.info.update(info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label."""
        with self._change():
            self.get_label_uri(label_id, label_tag)
            self._datastore.objects[label_id].labels[label_tag].info.update(info)

    def labelled_studies(self) -> list[LabelledStudy]:
        """Studies with a final label, to train on; those are left out that links lead away from."""
        found = []
        for name in self.get_labeled_images():
            with contextlib.suppress(ValueError, LabelNotFoundException):
                image, label = self.get_image_uri(name), self.get_label_uri(name, FINAL)
                found.append(LabelledStudy(name, Path(image), Path(label)))
        return found

    def open_studies(self) -> dict[str, Path]:
        """Files of studies without a final label; those are left out that cannot be served."""
        found = {}
        for name in self.get_unlabeled_images():
            with contextlib.suppress(ValueError, ImageNotFoundException):
                file = Path(self.get_image_uri(name))
                if file.is_file():
                    found[name] = file
        return found

    def refresh(self) -> None:
        """Look for files that others put there or took away."""
        self._reconcile_datastore()

    def _watch(self, patterns: list[str]) -> None:
        """Look for new files among studies and labels; what else lies beside them is left alone."""
        handler = PatternMatchingEventHandler(patterns=patterns, ignore_directories=True)
        handler.on_created = handler.on_deleted = handler.on_moved = lambda event: self.refresh()
        observer = PollingObserver() if self._is_on_mount(str(self._root)) else Observer()
        observer.schedule(handler, str(self._root), recursive=False)
        observer.schedule(handler, str(self._root / "labels"), recursive=True)
        try:
            observer.start()
        except OSError as error:
            logger.warning("new files are not looked for, POST /reload finds them: %s", error)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Change the list: nobody else does, it is the newest, and it is written afterwards."""
        with self._threads, self._file_lock:
            yield
            self._update_datastore_file()

    def _reconcile_datastore(self) -> None:
        with self._threads, self._file_lock:
            super()._reconcile_datastore()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        file = Path(self._datastore_config_path)
        try:
            status = file.stat()
        except FileNotFoundError:
            return
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp == self._stamp:
            return
        try:
            content = LocalDatastoreModel.model_validate_json(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged; move it away, studies and labels are found without it"
            ) from error
        content.base_path = self._datastore_path
        self._list, self._stamp = content, stamp

    def _update_datastore_file(self, lock: bool = True) -> None:
        file = Path(self._datastore_config_path)
        content = self._list.model_dump(exclude={"base_path"})
        write_text(file, json.dumps(content, indent=2, default=str))
        status = file.stat()
        self._stamp = (status.st_mtime_ns, status.st_ino, status.st_size)


def _readable(file: Path) -> Path:
    """The file itself, if it leads to no other by its header."""
    if file.is_file() and not is_video(file):
        check_alone(file)
    return file

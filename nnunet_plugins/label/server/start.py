"""The server's start: its log, what it says, and uvicorn."""

import logging
import os
import socket
import sys
from collections.abc import Collection
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

import uvicorn
from monailabel.interfaces.utils.app import app_instance

from nnunet_plugins.label.environment import make_private
from nnunet_plugins.label.guard import Guard
from nnunet_plugins.label.hosts import LOOPBACK
from nnunet_plugins.label.page_files import FILES
from nnunet_plugins.label.server.app import LabelApp
from nnunet_plugins.label.server.connections import Connection
from nnunet_plugins.label.server.routes import make_application

LOG_BYTES, LOG_FILES = 5_000_000, 5


def serve(
    listening: socket.socket,
    token: str,
    largest_upload: int,
    show_token: bool,
    hosts: Collection[str],
) -> None:
    """Serve on a socket until Ctrl-C or SIGTERM.

    Args:
        listening: The socket.
        token: What every request must carry.
        largest_upload: Bytes of a request with a file.
        show_token: Print the token, which nobody knows yet.
        hosts: Names under which it is asked, beside the loopback's.
    """
    app: LabelApp = app_instance()
    _log_to(app.work / "logs" / "server.log")
    application = Guard(make_application(), token, largest_upload, FILES, hosts)
    _announce(app, listening.getsockname(), token if show_token else None)
    config = uvicorn.Config(
        application, http=Connection, ws="none", log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=5, timeout_keep_alive=75,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])


class PrivateLog(RotatingFileHandler):
    """A log that nobody but this user may read: it names studies."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        os.chmod(stream.fileno(), 0o600)
        return stream


def _log_to(file: Path) -> None:
    make_private(file.parent)
    handler = PrivateLog(file, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _announce(app: LabelApp, address: tuple, token: str | None) -> None:
    host, port = address[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"Studies  {app.studies}, {len(app.datastore().list_images())} of them")
    for name, task in app._infers.items():
        kind = "videos" if task.bundle.of_videos else "volumes"
        state = "" if task.is_valid() else "; no weights yet: train it and promote the candidate"
        print(f"Model    {name}, for {kind}: {', '.join(task.labels)}{state}")
    if host not in LOOPBACK:
        print(
            f"WARNING  {host} is reached from other machines and nothing is encrypted; let a "
            "reverse proxy with TLS stand before 127.0.0.1 instead (the app's docs/README.md)",
            file=sys.stderr,
        )
    print(f"Address  http://{shown}:{port}/" + (f"#token={token}" if token else ""))
    if token:
        print(f"Token    {token}, as the header Authorization: Bearer TOKEN")
    print("Ctrl-C ends the server.", flush=True)

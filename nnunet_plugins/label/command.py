"""`mambamed label`: start the annotation server over a folder of studies."""

import argparse
import socket
from importlib import import_module
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from nnunet_plugins.data.sources import find_group
from nnunet_plugins.label.catalogue import app_folder, bundle_folder
from nnunet_plugins.label.disk import FULL, is_full
from nnunet_plugins.label.environment import configure, problems, work_folder
from nnunet_plugins.label.hosts import host_name
from nnunet_plugins.label.tokens import new_token, read_token

BUNDLES = "hymamba,vivim,endomamba"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mambamed label`."""
    parser.add_argument("--studies", type=Path, required=True, help="folder of volumes or videos")
    parser.add_argument(
        "--bundles", help="names or folders of bundles, with commas between; without --nnunet "
        f"{BUNDLES} if not given",
    )  # fmt: skip
    parser.add_argument(
        "--nnunet", type=Path, metavar="FOLDER",
        help="also serve nnU-Net results, DatasetXXX_Name/Trainer__Plans__configuration",
    )  # fmt: skip
    parser.add_argument(
        "--group-by", metavar="PATTERN",
        help=r"finds the patient in a study's name, as '^(patient\d+)', where neither patients.csv "
        "beside the studies nor a DICOM header tells it; no patient trains and scores a candidate",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; %(default)s")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="a name under which browsers ask for it, as that of a reverse proxy; repeatable",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one; %(default)s")
    parser.add_argument(
        "--token-file", type=Path, help="file with the token; a new one is made if not given"
    )
    parser.add_argument(
        "--max-upload", type=int, default=2048, metavar="MIB", help="of a file; %(default)s"
    )
    parser.add_argument("--threads", type=int, help="torch's threads in a prediction")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, and return 0.

    Raises:
        OSError: If a folder is missing, the port is taken or another server has the studies.
        ValueError: If an option or a bundle does not fit.
        RuntimeError: If MONAI Label cannot run here.
    """
    if reasons := list(problems()):
        raise RuntimeError("; ".join(reasons))
    if not args.studies.is_dir():
        raise FileNotFoundError(f"{args.studies} is no folder; name one of studies with --studies")
    if args.max_upload < 1:
        raise ValueError(f"--max-upload {args.max_upload} lets no file through; give MiB")
    token = read_token(args.token_file) if args.token_file else new_token()
    if args.threads:
        torch.set_num_threads(args.threads)
    conf = _conf(args)
    hosts, work = server_names(args), work_folder(args.studies)
    try:
        work.mkdir(exist_ok=True)
        with FileLock(work / ".server", timeout=0), _listen(args.host, args.port) as listening:
            configure(app_folder(), args.studies, conf)
            start = import_module("nnunet_plugins.label.server.start")
            largest_upload, show_token = args.max_upload * 2**20, args.token_file is None
            start.serve(listening, token, largest_upload, show_token, hosts)
    except Timeout as error:
        raise OSError(f"another server has {args.studies} open; stop that one first") from error
    except OSError as error:
        if not is_full(error):
            raise
        raise OSError(FULL) from error
    return 0


def _conf(args: argparse.Namespace) -> dict[str, str]:
    names = args.bundles if args.bundles or args.nnunet else BUNDLES
    folders = [str(bundle_folder(name.strip())) for name in (names or "").split(",") if name]
    conf = {"bundles": ",".join(folders)}
    if args.nnunet:
        conf["nnunet"] = str(args.nnunet.resolve())
    if args.group_by:
        find_group("", args.group_by)  # no expression ends here
        conf["group_by"] = args.group_by
    return conf


def server_names(args: argparse.Namespace) -> list[str]:
    """Names under which this server is asked, beside the loopback's.

    Raises:
        ValueError: If one that is given is none.
    """
    for name in args.allow_host:
        if not host_name(name):
            raise ValueError(
                f"--allow-host {name} is no name; give one such as label.hospital.example alone"
            )
    return [args.host.lower(), *map(host_name, args.allow_host)]


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ValueError(f"--port {port} is none; give 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}") from error

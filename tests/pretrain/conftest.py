import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.pretrain import toys

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps one precision and one device for the life of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def fork():
    """Start the toy command in a process that need not import anything; ended with the test."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pretrain.toys"])
    processes = []

    def start(folder, environment=None, **options):
        arguments = (str(folder), json.dumps(options))
        process = context.Process(target=toys.main, args=arguments, kwargs=environment or {})
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def launch():
    """Start the toy command as a user does, in a group of its own; ended with the test."""
    processes = []
    threads = str(torch.get_num_threads())  # sums are equal to the last bit on as many threads

    def start(folder, *launcher, **options):
        command = [sys.executable, *launcher, "-m", "tests.pretrain.toys", str(folder)]
        process = subprocess.Popen(
            [*command, json.dumps(options)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads},
            encoding="utf-8",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def scans(tmp_path):
    """A folder of four small scans."""
    folder = tmp_path / "scans"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        voxels = random.normal(100, 20, (20, 22, 24)).astype(np.float32)
        voxels[5:15, 5:15, 5:15] += 200
        sitk.WriteImage(sitk.GetImageFromArray(voxels), folder / f"scan_{i}.nii.gz")
    return folder

import argparse
import json
import subprocess

import pytest

from nnunet_plugins import doctor

PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def lookup(monkeypatch):
    """Answer for the child process that looks the trainer up, which imports for seconds."""

    def answer(returncode, stdout="", stderr=""):
        done = subprocess.CompletedProcess([], returncode, stdout, stderr)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)

    answer(0, "a message of nnU-Net\nnnunet_plugins.trainers.HyMambaTrainer\n")
    return answer


def run(capsys, *argv):
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    status = doctor.run(parser.parse_args(argv))
    return status, capsys.readouterr().out


def test_json_names_every_backend_of_the_scan(lookup, capsys):
    from mamba_kernels import available_backends

    status, out = run(capsys, "--json")
    report = json.loads(out)
    scans = [f for f in report["findings"] if f["topic"] == "scan"]
    assert status == 0
    assert report["ready"]
    assert {f["status"] for f in scans} == {"ok"}
    tried = {f["text"].split()[0] for f in scans}
    assert {"reference", "torch"} <= tried <= set(available_backends())


def test_text_and_json_say_the_same(lookup, capsys):
    _, text = run(capsys)
    _, out = run(capsys, "--json")
    topics = [f["topic"] for f in json.loads(out)["findings"]]
    lines = [line.split() for line in text.splitlines()]
    assert [w[1] for w in lines if w and w[0] in ("ok", "note", "problem")] == topics


def test_unset_paths_come_with_the_line_to_type(lookup, capsys, monkeypatch):
    for name in PATHS:
        monkeypatch.delenv(name, raising=False)
    status, text = run(capsys)
    assert status == 0
    for name in PATHS:
        assert f"export {name}=" in text
    assert text.splitlines()[-1] == "Works; 3 things to set up before training."


def test_paths_are_judged_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert doctor._folder("nnUNet_raw").status == "ok"
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "absent"))
    assert "mkdir" in doctor._folder("nnUNet_raw").advice


def test_a_trainer_that_is_not_found_is_essential_and_has_two_ways_out(lookup, capsys):
    lookup(1, stderr="Traceback\nRuntimeError: Could not find requested nnunet trainer\n")
    status, text = run(capsys)
    assert status == 1
    assert "Could not find requested" in text
    assert "pip install" in text
    assert "nnUNet_extTrainer=" in text
    assert text.splitlines()[-1].startswith("Not ready: trainers")


@pytest.mark.parametrize("fault", ["raises", "lies"])
def test_a_broken_backend_is_essential(fault, lookup, capsys, monkeypatch):
    true_scan = doctor._run_scan

    def broken(backend, device):
        if backend == "torch" and fault == "raises":
            raise RuntimeError("no kernel image")
        y, *grads = true_scan(backend, device)
        return [y + (backend == "torch"), *grads]

    monkeypatch.setattr(doctor, "_run_scan", broken)
    status, text = run(capsys)
    assert status == 1
    assert "problem  scan" in text
    assert ("no kernel image" in text) == (fault == "raises")


def test_waiting_threads_are_a_note_on_few_cores(monkeypatch):
    monkeypatch.setattr(doctor, "_accelerators", list)
    monkeypatch.setattr(doctor, "_cores", lambda: 2)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    (finding,) = doctor._waiting_threads()
    assert "export OMP_WAIT_POLICY=PASSIVE" in finding.advice
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert [f.status for f in doctor._waiting_threads()] == ["ok"]
    monkeypatch.setattr(doctor, "_cores", lambda: 64)
    assert list(doctor._waiting_threads()) == []


def test_the_machine_is_described_for_the_record():
    about = doctor.machine()
    assert {"CPU", "Python", "torch", "nnunetv2", "mambamed", "Date"} <= set(about)
    assert all(about.values())

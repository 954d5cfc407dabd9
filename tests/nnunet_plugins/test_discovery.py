"""Stock nnU-Net finds our classes by name: by the start-up file, and by the documented variable."""

import subprocess
import sys
from pathlib import Path

import pytest

FIND = """
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
trainer = find({name!r})
print(trainer.__module__, trainer.__name__)
"""
HOOKED = "from nnunet_plugins import discovery; discovery.install(); discovery.install()\n"


def python(code: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize(
    "name", ["HyMambaTrainer", "HyMambaTrainer_small_2epochs", "nnUNetTrainer"]
)
def test_a_new_process_finds_trainers_by_name_alone(name, tmp_path):
    done = python(f"import os; os.chdir({str(tmp_path)!r})\n" + FIND.format(name=name))
    assert done.stdout.split()[-1] == name, done.stderr


def test_a_planner_is_found_as_the_command_line_looks_for_it():
    code = HOOKED + (
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find\n"
        "print(find('', 'HyMambaPlanner', 'nnunetv2.experiment_planning').__name__)"
    )
    assert python(code).stdout.split() == ["HyMambaPlanner"]


def test_installing_after_nnunet_was_imported_works_too():
    code = "import nnunetv2.utilities.find_class_by_name\n" + HOOKED + FIND
    assert "HyMambaTrainer" in python(code.format(name="HyMambaTrainer")).stdout


def test_a_mistyped_trainer_is_one_clear_sentence():
    done = python(HOOKED + FIND.format(name="HyMambaTrainer_spiral"))
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: HyMambaTrainer has no")


def test_the_start_up_file_costs_next_to_nothing():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import nnunet_plugins.discovery; nnunet_plugins.discovery.install()\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = python(code, "-S", PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.stdout.strip() == "['nnunet_plugins', 'nnunet_plugins.discovery']", done.stderr


def test_without_start_up_files_the_variable_of_nnunet_does_it():
    folder = subprocess.run(
        [sys.executable, "-m", "nnunet_plugins"], capture_output=True, encoding="utf-8", check=True
    ).stdout.strip()
    code = (
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find\n"
        "assert not hasattr(find, '__wrapped__')\n"
        f"trainer = find({folder!r}, 'HyMambaTrainer_small_9epochs', None, base_folder={folder!r},"
        " cleanup_imports_from_base_folder=True)\n"
        "from nnunet_plugins.registry import find_class\n"
        "print(trainer is find_class('HyMambaTrainer_small_9epochs'))"
    )
    paths = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Lookup' not in str(f)]\n"
    done = python(paths + code)
    assert done.stdout.split() == ["True"], done.stderr


def test_trainers_of_others_with_names_like_ours_are_found(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class HyMambaTrainer_lowlr(nnUNetTrainer): pass\n"
        "class UMambaTrainer(nnUNetTrainer): pass\n"
    )
    code = HOOKED + (
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find\n"
        f"for name in ('HyMambaTrainer_lowlr', 'UMambaTrainer'): print(find({str(tmp_path)!r}, "
        f"name, None, base_folder={str(tmp_path)!r}).__name__)"
    )
    done = python(code, nnUNet_extTrainer=str(tmp_path))
    assert done.stdout.split() == ["HyMambaTrainer_lowlr", "UMambaTrainer"], done.stderr


def test_asking_for_the_module_before_importing_it_does_not_lose_the_hook():
    code = HOOKED + (
        "import importlib.util, sys\n"
        "importlib.util.find_spec('nnunetv2.utilities.find_class_by_name')\n"
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find\n"
        "print(hasattr(find, '__wrapped__'))"
    )
    done = python(code)
    assert done.stdout.split() == ["True"], done.stderr

import pickle

import pytest

from nnunet_plugins.registry import find_class, names


@pytest.mark.parametrize("name", names())
def test_every_file_holds_the_class_it_is_named_after(name):
    assert find_class(name).__name__ == name


def test_options_in_a_name_set_the_class_and_stand_in_its_name():
    name = "HyMambaTrainer_small_20epochs_7iterations_hilbert_unidirectional_seed4"
    trainer = find_class(name)
    base = find_class("HyMambaTrainer_small")
    assert trainer.__name__ == name
    assert issubclass(trainer, base)
    chosen = {"num_epochs": 20, "num_iterations_per_epoch": 7, "seed": 4}
    assert trainer.hyperparameters == base.hyperparameters | chosen
    assert trainer.network_options == {"scan_order": "hilbert", "bidirectional": False}
    assert base.network_options == {}


def test_the_same_name_is_the_same_class_and_can_be_pickled():
    name = "HyMambaTrainer_small_3epochs"
    assert find_class(name) is find_class(name)
    assert pickle.loads(pickle.dumps(find_class(name))) is find_class(name)


def test_names_of_others_are_left_to_nnunet():
    for name in ("nnUNetTrainer", "nnUNetTrainer_5epochs", "DefaultPreprocessor", "SimpleITKIO"):
        assert find_class(name) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HyMambaTrainer_spiral", "no option '_spiral'.*hilbert"),
        ("HyMambaTrainer_small_epochs", "no option '_epochs'.*Nepochs"),
        ("HyMambaTrainer_2epochs_3epochs", "sets num_epochs twice"),
        ("HyMambaTrainr", "did you mean 'HyMambaTrainer'"),
        ("HyMambaPlaner", "did you mean 'HyMambaPlanner'"),
        ("HyMambaPlanner_5epochs", "has no options"),
        ("HyMambaTrainer_0epochs", "0"),
    ],
)
def test_slips_are_named_in_one_sentence(name, message):
    with pytest.raises(ValueError, match=message) as error:
        find_class(name)
    assert "\n" not in str(error.value)

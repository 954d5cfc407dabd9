import json
import math
from itertools import pairwise

import pytest

from pretrain.schedule import cosine, warmup_cosine
from pretrain.settings import Settings


def test_go_through_json_unchanged():
    settings = Settings(epochs=7, lr=3e-4, betas=(0.8, 0.99), precision="bf16", device="cpu")
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("name", "hint"), [("wieght_decay", "weight_decay"), ("epoch", "epochs"), ("xyz", "there are")]
)
def test_an_unknown_name_is_refused_with_the_near_one(name, hint):
    with pytest.raises(ValueError, match=rf"{name} is not a setting.*{hint}"):
        Settings.from_dict({name: 1})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, "epochs is 0.*more than 0"),
        ({"epochs": 2.5}, "epochs is 2.5.*type int"),
        ({"lr": "1e-3"}, "lr is '1e-3'.*type float"),
        ({"lr": math.nan}, "lr is nan"),
        ({"workers": -1}, "workers is -1.*0 or more"),
        ({"warmup": 1.5}, "warmup is 1.5.*share"),
        ({"precision": "fp8"}, "precision is 'fp8'.*no, bf16, fp16"),
        ({"betas": [0.9]}, "betas is .*two numbers"),
        ({"betas": [0.9, 1]}, "betas is .*two numbers"),
        ({"seed": True}, "seed is True.*type int"),
    ],
)
def test_a_value_that_cannot_work_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Settings.from_dict(values)


def test_a_whole_number_passes_as_a_float():
    assert isinstance(Settings.from_dict({"clip": 1}).clip, float)


def test_the_rate_grows_linearly_and_falls_as_a_half_cosine():
    rates = [warmup_cosine(step, 100, 20, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 21)
    assert rates[10] - rates[9] == pytest.approx(1 / 21)
    assert max(rates) == rates[20] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert all(b < a for a, b in pairwise(rates[20:]))
    assert rates[20 + 79 // 2] == pytest.approx(0.55, abs=0.01)


@pytest.mark.parametrize("steps", [1, 2])
def test_very_short_schedules_stay_within_their_ends(steps):
    assert all(0.2 <= cosine(step, steps, 1.0, 0.2) <= 1.0 for step in range(steps))
    assert cosine(5, 9, 0.3, 0.3) == 0.3

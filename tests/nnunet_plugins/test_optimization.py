import pytest
import torch

from nnunet_plugins.networks import HyMamba
from nnunet_plugins.optimization import WarmupPolyLR, cpu_trains_in_bfloat16, decay_groups


def test_norms_biases_decay_rates_and_skips_do_not_decay():
    network = HyMamba(1, 2, features_per_stage=(4, 6, 8), mamba_depth=1)
    names = {id(p): name for name, p in network.named_parameters()}
    decays, stays = decay_groups(network, 0.1)
    assert decays["weight_decay"] == 0.1
    assert stays["weight_decay"] == 0
    stay = {names[id(p)].rsplit(".", 1)[-1] for p in stays["params"]}
    assert {"A_log", "A_b_log", "D", "D_b", "bias"} <= stay
    assert all(names[id(p)].endswith("weight") and p.ndim > 1 for p in decays["params"])
    assert len(decays["params"]) + len(stays["params"]) == len(names)


def test_the_rate_rises_peaks_falls_and_depends_on_the_epoch_alone():
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    schedule = WarmupPolyLR(optimizer, peak=1.0, epochs=20, warmup=4)
    rates = []
    for epoch in range(20):
        schedule.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert max(rates) == rates[4] == 1.0
    assert min(rates) > 0
    schedule.step(7)
    assert optimizer.param_groups[0]["lr"] == rates[7]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [({}, False), ({"avx512_bf16": True}, True), ({"avx512_bf16": True, "amx_bf16": True}, False)],
    ids=["old", "pairs", "amx"],
)
def test_training_in_bfloat16_is_for_cpus_that_do_it_right(monkeypatch, flags, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert cpu_trains_in_bfloat16() is wanted

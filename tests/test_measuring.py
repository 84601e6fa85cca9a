"""Seconds and bytes of an update."""

import copy

import pytest
import torch

from fabook.measuring import peak_bytes, step_times
from fabook.networks import mlp
from fabook.rules import RULES
from fabook.streams import stream


def test_step_times_calls_in_turn():
    calls = []
    names = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = step_times(names, repeats=3)
    assert calls == ["a", "b"] * 4
    assert set(times) == {"a", "b"}
    assert all(0 < t < 1 for t in times.values())
    with pytest.raises(ValueError, match="repeats must be positive; got 0"):
        step_times(names, repeats=0)


def test_peak_bytes_counts_what_is_there_at_once(device):
    x = torch.ones(1000, dtype=torch.float64, device=device)
    half = torch.zeros(500, dtype=torch.float64, device=device)

    def chain():
        a = x + 1  # 8,000 bytes
        b = a * 2  # 16,000
        del a
        return b - 1  # 16,000, not 24,000

    assert peak_bytes(chain) == 16_000
    assert peak_bytes(lambda: x.add_(1)) == 0  # in place, in what was there before
    assert peak_bytes(lambda: x[:500].reshape(50, 10).t()) == 0  # views
    assert peak_bytes(lambda: torch.add(x[:500], half, out=half)) == 0


def test_peak_bytes_sees_what_autograd_keeps(device):
    """A chain of sines keeps each input until the way back."""
    x = torch.ones(1000, dtype=torch.float64, device=device, requires_grad=True)

    def forward(grad):
        with torch.set_grad_enabled(grad):
            h = x
            for _ in range(9):
                h = h.sin()

    assert peak_bytes(lambda: forward(True)) == 72_000
    assert peak_bytes(lambda: forward(False)) == 16_000


@pytest.mark.parametrize("rule", RULES)
def test_measuring_memory_is_an_update_like_any_other(rule, device, dtype):
    g = stream(0, "data")
    x = torch.randn(23, 4, generator=g, dtype=dtype).to(device)
    y = torch.randint(3, (23,), generator=g).to(device)
    net = mlp([4, 5, 6, 3], generator=stream(0, "weights"), dtype=dtype).to(device)
    twin = copy.deepcopy(net)
    one, other = (RULES[rule](each, generator=stream(0, "feedback")) for each in (net, twin))
    assert peak_bytes(lambda: one.sgd_step(x, y, 0.1)) > 0
    for _ in range(2):
        other.sgd_step(x, y, 0.1)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)

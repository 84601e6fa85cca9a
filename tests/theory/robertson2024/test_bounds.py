"""Bounds against small flows, and the largest margin."""

from __future__ import annotations

import pytest
import torch

from dominant_networks import H, N, problem
from fabook import stream
from fabook.theory import robertson2024 as dom
from fabook.training import train


@pytest.mark.parametrize("loss", dom.LOSS_FUNCTIONS)
def test_dominant_start_descends_within_its_bound(loss):
    rule, x, y = problem(1.0, 0.1)
    lr, due = 0.05, range(0, 2001, 50)
    seen = train(
        rule, x, y, steps=2000, lr=lr, loss=dom.LOSS_FUNCTIONS[loss], probe_at=due,
        probe={"": lambda: dom.measure(rule, x, y, loss)},
    )  # fmt: skip
    value, t = torch.as_tensor(seen["loss"]), torch.as_tensor(lr * seen.steps)
    assert (seen["least"] >= 0).all()
    assert (value[1:] <= value[:-1]).all()
    if loss == "squared":
        bound = dom.exponential_bound(
            t, torch.as_tensor(seen["eigenvalue"]), float(value[0]), 0.1, N
        )
    else:
        bound = dom.separable_bound(
            t, float(value[0]), 0.1, margin=dom.margin_direction(x, y[:, 0])[1],
            active=seen["active"].min(), worst=seen["worst"].max(), width=H,
        )  # fmt: skip
    assert (value <= bound * (1 + 1e-12)).all()
    assert bound[-1] < 0.999 * bound[0]


def test_margin_is_the_largest():
    g = stream(0, "margin")
    x = torch.randn(8, 3, generator=g).double()
    y = torch.sign(x @ torch.tensor([1.0, -2.0, 0.5]).double())
    v, margin = dom.margin_direction(x, y)
    others = torch.nn.functional.normalize(v + 0.05 * torch.randn(500, 3, generator=g).double())
    assert margin > 0
    assert (y[:, None] * (x @ others.T)).min(0).values.max() <= margin + 1e-12
    assert dom.margin_direction(torch.cat([x, x]), torch.cat([y, -y]))[1] <= 1e-9
    with pytest.raises(ValueError, match="plus or minus one"):
        dom.margin_direction(x, (y > 0).double())

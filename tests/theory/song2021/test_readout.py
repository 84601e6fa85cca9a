"""What is left of a penalised read-out's start, what it learned, and the law that binds it to W."""

from __future__ import annotations

import pytest
import torch

import fabook
from fabook.theory.song2021 import readout


def trained(penalty: float, steps: int, lr: float = 1e-3) -> tuple[fabook.FA, torch.Tensor, list]:
    """A network after some steps, its first read-out, and every step of the read-out's gradient."""
    streams = fabook.streams(0, "readout")
    net = fabook.two_layer(
        12, 40, n_outputs=3, activation="relu", generator=streams.weights, dtype=torch.float64
    )
    rule = fabook.FA(net, init="standard_normal", generator=streams.feedback)
    first, gradients = net[2].weight.detach().clone(), []
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters()},
         {"params": net[2].parameters(), "weight_decay": penalty}], lr=lr,
    )  # fmt: skip
    x, y = inputs()
    fabook.train(
        rule, x, y, steps=steps, optimizer=optimizer,
        after_step=lambda step: gradients.append(net[2].weight.grad.clone()),
    )  # fmt: skip
    return rule, first, gradients


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    g = fabook.stream(0, "readout", "x")
    return torch.randn(20, 12, generator=g, dtype=torch.float64), torch.arange(20) % 3


def test_the_learned_part_gathers_the_steps_and_forgets_with_the_penalty() -> None:
    penalty, lr, steps = 2.0, 1e-2, 30
    rule, first, gradients = trained(penalty, steps, lr)
    gathered = torch.zeros_like(first)
    for gradient in gradients:
        gathered = (1 - lr * penalty) * gathered - lr * gradient
    kept = (1 - lr * penalty) ** steps
    seen = readout.read_out(rule, *inputs(), first=first, kept=kept)
    B = rule.feedback["0"]
    assert seen["learned_size"] == pytest.approx(float(gathered.norm() / B.norm()), rel=1e-10)
    along = float((B * gathered).sum() / B.square().sum())
    assert seen["towards"] == pytest.approx(along, rel=1e-8, abs=1e-12)
    assert seen["size"] == pytest.approx(float(rule.net[2].weight.detach().norm() / B.norm()))


def test_without_a_penalty_the_learned_part_grows_along_the_feedback_as_the_weights_grow() -> None:
    gaps = []
    for lr in (0.1, 0.05):
        rule, first, _ = trained(0.0, round(30 / lr), lr)
        before = trained(0.0, 0)[0]
        late, early = (readout.read_out(r, *inputs(), first=first) for r in (rule, before))
        assert late["towards"] > 0
        gaps.append(late["growth"] - early["growth"] - late["towards"])
    assert 0 < gaps[1] < gaps[0] < 0.1 * late["towards"]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)  # half the squared steps: first order


def test_alignment_is_the_mean_cosine_of_what_arrives_at_the_hidden_units() -> None:
    rule, first, _ = trained(0.0, 5)
    x, y = inputs()
    seen = readout.read_out(rule, x, y, first=first)
    logits = rule.net(x).detach()
    e = logits.softmax(1) - torch.nn.functional.one_hot(y, 3)
    B, V = rule.feedback["0"], rule.net[2].weight.detach()
    cosines = torch.nn.functional.cosine_similarity(e @ B, e @ V, dim=1)
    assert seen["alignment"] == pytest.approx(float(cosines.mean()), rel=1e-10)


def test_a_read_out_that_starts_at_zero_is_all_learned() -> None:
    rule, first, _ = trained(0.0, 5)
    seen = readout.read_out(rule, *inputs(), first=torch.zeros_like(first))
    assert seen["learned"] == pytest.approx(seen["alignment"], rel=1e-12)
    assert seen["learned_size"] == seen["size"]


def test_measuring_changes_nothing_and_a_wrong_shape_is_named() -> None:
    rule, first, _ = trained(0.0, 2)
    before = [p.detach().clone() for p in (*rule.net.parameters(), rule.feedback["0"])]
    readout.read_out(rule, *inputs(), first=first)
    after = (*rule.net.parameters(), rule.feedback["0"])
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    with pytest.raises(ValueError, match=r"\(3, 40\).*\(3, 39\)"):
        readout.read_out(rule, *inputs(), first=first[:, :39])

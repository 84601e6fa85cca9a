"""The dial between random and exact feedback."""

import pytest
import torch
from torch import nn

from fabook import BP, FA, convnet, mlp, stream
from fabook.metrics import cosine, gradient_alignment
from fabook.theory.chu2023 import dialled_feedback


def test_dialled_feedback_keeps_norm_and_draw() -> None:
    net = mlp([5, 6, 4, 3], generator=stream(0), dtype=torch.float64)
    weights = {"0": net[2].weight.detach(), "2": net[4].weight.detach()}
    for c in (-1.0, -0.3, 0.0, 1.0):
        found = dialled_feedback(net, c, stream(1))
        assert list(found) == ["0", "2"]
        for name, b in found.items():
            w = weights[name]
            assert float(b.norm()) == pytest.approx(float(w.norm()))
            assert float((b * w).sum() / w.norm() ** 2) == pytest.approx(c)
    torch.testing.assert_close(dialled_feedback(net, 1.0, stream(1)), weights)


def net(seed: int = 0) -> nn.Sequential:
    g = stream(seed, "weights")
    return mlp([20, 200, 200, 5], activation="relu", init="xavier_uniform", generator=g)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.3, 0.9])
def test_dial_sets_the_cosine_and_keeps_the_size(rho):
    made = net()
    feedback = dialled_feedback(made, rho, stream(0, "feedback"), init="xavier_uniform")
    assert list(feedback) == ["0", "2"]
    for name, above in (("0", made[2]), ("2", made[4])):
        assert float(cosine(feedback[name], above.weight)) == pytest.approx(rho, abs=0.1)
        assert float(feedback[name].std() / above.weight.detach().std()) == pytest.approx(
            1, abs=0.1
        )


def test_at_one_the_first_gradient_is_the_true_one():
    made, x = net(), torch.randn(7, 20, generator=stream(0, "x"))
    rule = FA(made, feedback=dialled_feedback(made, 1.0, stream(0, "feedback")))
    y = torch.arange(7) % 5
    assert gradient_alignment(rule, x, y).total == pytest.approx(1)
    true = BP(made).gradients(x, y)
    for name, g in rule.gradients(x, y).items():
        torch.testing.assert_close(g, true[name])


def test_dial_refuses_what_it_cannot_set():
    with pytest.raises(ValueError, match=r"\[-1, 1\]; got 1\.5"):
        dialled_feedback(net(), 1.5, stream(0, "feedback"))
    normalised = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"Linear and Conv2d layers; '1' is LayerNorm"):
        dialled_feedback(normalised, 0.5, stream(0, "feedback"))


def test_dial_takes_convolutions():
    made = convnet((1, 8, 8), [4, 4], [6], 3, generator=stream(0, "weights"), dtype=torch.float64)
    rule = FA(made, feedback=dialled_feedback(made, 1.0, stream(0, "feedback")))
    x = torch.randn(7, 1, 8, 8, generator=stream(0, "x"), dtype=torch.float64)
    assert gradient_alignment(rule, x, torch.arange(7) % 3).total == pytest.approx(1)

"""Two-layer ReLU networks with a chosen alignment of each neuron."""

import math

import torch

from fabook import FA, mlp, stream
from fabook.theory import robertson2024 as dom

N, D, H = 12, 6, 40


def problem(factor: float, offset: float, seed: int = 0):
    g = stream(seed, "dominance")
    x = torch.nn.functional.normalize(torch.randn(N, D, generator=g, dtype=torch.float64))
    y = torch.sign(x[:, :1] + 0.2)
    net = mlp([D, H, 1], activation="relu", bias=False, generator=g, dtype=torch.float64)
    net[0].weight.data.mul_(0.5)
    b = torch.randn(1, H, generator=g, dtype=torch.float64).sign() / math.sqrt(H)
    net[2].weight.data[0] = dom.readout(net[0].weight.data, b[0], factor=factor, offset=offset)
    return FA(net, feedback={"0": b}), x, y

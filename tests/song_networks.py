"""Two-layer networks of Song, Xu & Lafferty with their data, and the reduction that fits them."""

import torch

from fabook import two_layer
from fabook.rules import FA
from fabook.streams import stream
from fabook.theory.song2021.reduction import linear_runs, train_linear, train_two_layer

ACTIVATIONS = ["linear", "relu", "tanh", "sigmoid", "leaky_relu"]


def problem(device, activation="linear", p=60, n=8, d=20, seed=0, dtype=torch.float64):
    net = two_layer(d, p, activation=activation, generator=stream(seed, "w"), dtype=dtype)
    rule = FA(net.to(device), init="standard_normal", generator=stream(seed, "b")).to(device)
    x = torch.randn(n, d, generator=stream(seed, "x"), dtype=dtype).to(device)
    theta = torch.randn(d, generator=stream(seed, "theta"), dtype=dtype).to(device)
    return rule, x, x @ theta


def reduced(rule, x, y, activation, **options):
    if activation == "linear":
        return train_linear(linear_runs([rule], [x], [y]), **options)
    return train_two_layer(rule, x, y, **options)

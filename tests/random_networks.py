"""Random inputs, labels, networks and rules, each from a stream of its own."""

import torch
from hypothesis import settings
from torch import nn

from fabook.networks import mlp
from fabook.rules import RULES
from fabook.streams import stream

few = settings(deadline=None, derandomize=True, max_examples=30, database=None)
double = torch.float64


def randn(*shape, seed=0, dtype=double):
    return torch.randn(shape, generator=stream(seed, "test", *shape), dtype=dtype)


def labels(n, classes, seed=0):
    return torch.randint(classes, (n,), generator=stream(seed, "labels", n))


def net_of(*sizes, activation="tanh", seed=0, bias=True, dtype=double):
    net = mlp(
        sizes, activation=activation, bias=bias, generator=stream(seed, "weights"), dtype=dtype
    )
    with torch.no_grad():
        for k, layer in enumerate(m for m in net if isinstance(m, nn.Linear) and bias):
            layer.bias.copy_(0.1 * randn(len(layer.bias), seed=seed + k + 1))
    return net


def make(rule, net, seed=0, **options):
    return RULES[rule](net, generator=stream(seed, "feedback"), **options)

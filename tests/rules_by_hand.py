"""Rules and gradients written out, with nothing of the library's in the formula."""

import torch
import torch.nn.functional as F
from torch import nn

from fabook.networks import mlp
from fabook.rules import RULES
from fabook.streams import stream

L, C, S = nn.Linear, nn.Conv2d, nn.Sequential


def rand(*shape, seed=0, low=None):
    """Normal numbers of the default dtype, or whole ones in [0, low)."""
    g = stream(seed, "test", *shape)
    return (
        torch.randn(shape, generator=g) if low is None else torch.randint(low, shape, generator=g)
    )


def close(got, want, scale=1.0):
    """To 1e-12 in double precision (1e-5 in single), relative to the largest entry above one."""
    got, want = got.detach(), want.detach()
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    tol = 1e-12 if want.dtype == torch.float64 else 1e-5
    error = (got - want).abs().max() if want.numel() else torch.zeros(())
    assert error <= tol * scale * max(1.0, float(want.abs().max())), float(error)


def fill(net, device="cpu", seed=0):
    """Give every parameter random values; nothing of torch's own initialisation stays."""
    g = stream(seed, "fill")
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    return net.to(device)


def make(rule, net, seed=0, **options):
    return RULES[rule](net, generator=stream(seed, "feedback"), **options)


def autograd(net, x, y, loss, reduction, axis):
    """Loss and gradients as torch has them; the classes' axis goes where torch wants it."""
    out = net(x)
    if loss == "cross_entropy":
        same = y.shape == out.shape
        moved = out.movedim(axis, -1)
        flat = moved.reshape(-1, moved.shape[-1])
        value = F.cross_entropy(
            flat,
            y.movedim(axis, -1).reshape(flat.shape) if same else y.flatten(),
            reduction=reduction,
        )
        if axis == 1:  # what F.cross_entropy itself says of maps
            close(value.detach(), F.cross_entropy(out, y, reduction=reduction).detach())
    else:
        value = F.mse_loss(out, y, reduction=reduction) if loss == "mse" else loss(out, y)
    value.backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = None
    return value.detach(), grads


def total(output, target):
    return output.sum()


def tanh_net(device, sizes=(5, 4, 6, 3), bias=True):
    return fill(mlp(sizes, bias=bias, generator=stream(0, "w")), device)


def by_hand(net, x, e, arrives):
    """Gradients of a tanh network by the formula for what arrives at h_i (i = 0, 1, ...)."""
    layers = [m for m in net if isinstance(m, L)]
    h, z = [x], []
    for layer in layers:
        z.append(h[-1] @ layer.weight.detach().T)
        if layer.bias is not None:
            z[-1] = z[-1] + layer.bias.detach()
        h.append(torch.tanh(z[-1]))
    deltas = [e(z[-1])]
    for i in reversed(range(len(layers) - 1)):
        deltas.insert(0, arrives(i, deltas[0], deltas[-1]) * (1 - torch.tanh(z[i]) ** 2))
    grads = {}
    for i, layer in enumerate(layers):
        grads[f"{2 * i}.weight"] = deltas[i].T @ h[i]
        if layer.bias is not None:
            grads[f"{2 * i}.bias"] = deltas[i].sum(0)
    return grads, deltas


def error_of(y, loss, reduction):
    """The output error, written out."""

    def error(f):
        if loss == "mse":
            return 2 * (f - y) / (f.numel() if reduction == "mean" else 1)
        p = torch.exp(f - f.max(1, keepdim=True).values)
        p = p / p.sum(1, keepdim=True)
        return (p - torch.eye(f.shape[1]).to(f)[y]) / (len(f) if reduction == "mean" else 1)

    return error


def weights(net):
    return [m.weight.detach() for m in net if isinstance(m, L)]

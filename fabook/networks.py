"""Networks of the papers, each a plain ``nn.Sequential`` with an explicit initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init


class Erf(nn.Module):
    r"""The sigmoidal unit $g(u) = \operatorname{erf}(u/\sqrt 2)$ of Saad & Solla (1995)."""

    def forward(self, u: Tensor) -> Tensor:
        return torch.erf(u / math.sqrt(2))


class Scale(nn.Module):
    """Multiplication by a fixed number, such as the 1/sqrt(p) of a two-layer network."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = float(factor)

    def forward(self, u: Tensor) -> Tensor:
        return u * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "sigmoid": nn.Sigmoid,
    "erf": Erf,
    "linear": nn.Identity,
}

INITS = ("uniform", "normal", "standard_normal", "xavier_uniform", "orthogonal", "zero")


def choose(what: str, name: str, allowed: Sequence[str]) -> str:
    """Return ``name`` if it is one of ``allowed``; else raise a ValueError that lists them."""
    if name not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}; got {name!r}")
    return name


def draw(
    shape: Sequence[int],
    init: str,
    *,
    scale: float = 1.0,
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Draw a weight tensor by the name of its distribution.

    With fan-in $n$ and fan-out $m$ of the shape ``(m, n, ...)``, ``scale`` $s$:

    - ``uniform``: $U(-s/\sqrt n, s/\sqrt n)$, PyTorch's own for linear layers;
    - ``normal``: $N(0, s^2/n)$;
    - ``standard_normal``: $N(0, s^2)$;
    - ``xavier_uniform``: uniform with variance $2 s^2/(m+n)$;
    - ``orthogonal``: orthonormal rows or columns times $s$;
    - ``zero``.

    Args:
        shape: at least two axes, outputs first.
        init: one of the names above.
        scale: a positive factor (units of the weight).
        generator: generator of the numbers, on its own device; not needed for ``zero``.
        dtype: floating dtype, by default torch's default.

    Returns:
        A tensor of that shape.

    Raises:
        ValueError: for an unknown name, or no generator where one is needed.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> draw((3, 100), "normal", generator=g).shape
        torch.Size([3, 100])
    """
    choose("init", init, INITS)
    device = None if generator is None else generator.device
    out = torch.zeros(tuple(shape), dtype=dtype, device=device)
    if init == "zero":
        return out
    if generator is None:
        raise ValueError(f"init {init!r} draws random numbers: pass generator=torch.Generator()")
    receptive = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * receptive, shape[0] * receptive
    if init == "uniform":
        bound = scale / math.sqrt(fan_in)
        return out.uniform_(-bound, bound, generator=generator)
    if init == "xavier_uniform":
        bound = scale * math.sqrt(6 / (fan_in + fan_out))
        return out.uniform_(-bound, bound, generator=generator)
    if init == "orthogonal":
        return nn.init.orthogonal_(out, gain=scale, generator=generator)
    sd = scale / math.sqrt(fan_in) if init == "normal" else scale
    return out.normal_(0.0, sd, generator=generator)


def _linear(
    n_in: int,
    n_out: int,
    bias: bool,
    init: str,
    scale: float,
    generator: Generator | None,
    dtype: torch.dtype | None,
) -> nn.Linear:
    """A linear layer that took nothing from the global random state; biases start at zero."""
    layer = skip_init(nn.Linear, n_in, n_out, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(draw((n_out, n_in), init, scale=scale, generator=generator, dtype=dtype))
        if bias:
            layer.bias.zero_()
    return layer


def mlp(
    sizes: Sequence[int],
    *,
    activation: str = "tanh",
    bias: bool = True,
    init: str = "uniform",
    scale: float = 1.0,
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    r"""Fully connected network $h_l = \phi(W_l h_{l-1} + b_l)$, linear at the top.

    Args:
        sizes: numbers of units from input to output, at least two.
        activation: one of ``ACTIVATIONS``.
        bias: whether layers have biases (zero at the start).
        init: distribution of the weights, see :func:`.draw`.
        scale: factor on the weights.
        generator: CPU generator of the weights.
        dtype: floating dtype.

    Returns:
        ``nn.Sequential`` of ``nn.Linear`` and activation modules.

    Raises:
        ValueError: for sizes, activation or init that are not allowed.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> mlp([784, 512, 10], activation="relu", generator=g)(torch.zeros(5, 784)).shape
        torch.Size([5, 10])
    """
    if len(sizes) < 2 or any(n < 1 for n in sizes):
        raise ValueError(f"sizes must be two or more positive numbers of units; got {list(sizes)}")
    act = ACTIVATIONS[choose("activation", activation, tuple(ACTIVATIONS))]
    modules: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        modules += [_linear(n_in, n_out, bias, init, scale, generator, dtype), act()]
    return nn.Sequential(*modules[:-1])


def linear_net(
    sizes: Sequence[int],
    *,
    init: str = "zero",
    scale: float = 1.0,
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    r"""Deep linear network $W_L \cdots W_1 x$ without biases; zero weights by default.

    Under direct feedback alignment zero is no saddle: learning starts from there.

    Args:
        sizes, init, scale, generator, dtype: as in :func:`.mlp`.

    Raises:
        ValueError: as :func:`.mlp`.

    Example:
        >>> len(linear_net([30, 100, 100, 5]))
        3
    """
    layers = mlp(
        sizes,
        activation="linear",
        bias=False,
        init=init,
        scale=scale,
        generator=generator,
        dtype=dtype,
    )
    return nn.Sequential(*(m for m in layers if isinstance(m, nn.Linear)))


def two_layer(
    n_inputs: int,
    n_hidden: int,
    *,
    n_outputs: int = 1,
    activation: str = "relu",
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    r"""The network of Song, Xu & Lafferty (2021): $f(x) = p^{-1/2} \beta^T \psi(W x)$.

    All weights are standard normal, there are no biases.

    Args:
        n_inputs: input dimension d.
        n_hidden: width p.
        n_outputs: number of outputs.
        activation: psi, one of ``ACTIVATIONS``.
        generator: CPU generator of the weights.
        dtype: floating dtype.

    Raises:
        ValueError: as :func:`.mlp`.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> two_layer(150, 3200, generator=g)[-1]
        Scale(0.0176777)
    """
    net = mlp(
        [n_inputs, n_hidden, n_outputs],
        activation=activation,
        bias=False,
        init="standard_normal",
        generator=generator,
        dtype=dtype,
    )
    return net.append(Scale(n_hidden**-0.5))


def committee(
    n_inputs: int,
    n_hidden: int,
    *,
    activation: str = "erf",
    init_sd: float = 1.0,
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    r"""Soft committee machine $\hat y = \sum_k v_k\, g(w_k \cdot x/\sqrt N)$.

    The two-layer student (or teacher) of Saad & Solla (1995) and Refinetti et al. (2021), with
    trained second layer, for use with the feedback rules. Online learning of many such students at
    once is in :mod:`fabook.theory.refinetti2021.simulation`.

    Args:
        n_inputs: N.
        n_hidden: K.
        activation: ``erf``, ``relu`` or ``linear`` (any of ``ACTIVATIONS`` works).
        init_sd: standard deviation of every weight.
        generator: CPU generator of the weights.
        dtype: floating dtype.

    Raises:
        ValueError: as :func:`.mlp`.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> committee(500, 2, generator=g)(torch.zeros(3, 500)).shape
        torch.Size([3, 1])
    """
    hidden, act, read_out = mlp(
        [n_inputs, n_hidden, 1],
        activation=activation,
        bias=False,
        init="standard_normal",
        scale=init_sd,
        generator=generator,
        dtype=dtype,
    )
    return nn.Sequential(hidden, Scale(n_inputs**-0.5), act, read_out)


def convnet(
    input_shape: tuple[int, int, int],
    channels: Sequence[int],
    hidden: Sequence[int],
    n_outputs: int,
    *,
    kernel: int = 3,
    pool: int = 1,
    activation: str = "tanh",
    bias: bool = True,
    init: str = "uniform",
    scale: float = 1.0,
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Small convolutional network: valid convolutions, optional max-pooling, linear layers on top.

    Args:
        input_shape: (channels, height, width) of an image.
        channels: output channels of each convolution.
        hidden: widths of the hidden linear layers (may be empty).
        n_outputs: number of outputs.
        kernel: side of the kernels, in pixels.
        pool: side of the max-pooling after each activation, 1 for none.
        activation, bias, init, scale, generator, dtype: as in :func:`.mlp`.

    Raises:
        ValueError: if an image becomes smaller than the kernel or the pool, or as :func:`.mlp`.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> convnet((1, 8, 8), [4], [16], 10, generator=g)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    act = ACTIVATIONS[choose("activation", activation, tuple(ACTIVATIONS))]
    n_in, height, width = input_shape
    modules: list[nn.Module] = []
    for n_out in channels:
        height, width = height - kernel + 1, width - kernel + 1
        if min(height, width) < pool:
            raise ValueError(
                f"images of {input_shape[1:]} pixels are too small for {len(channels)} "
                f"convolutions of kernel {kernel} with pool {pool}"
            )
        layer = skip_init(nn.Conv2d, n_in, n_out, kernel, bias=bias, dtype=dtype)
        with torch.no_grad():
            shape = (n_out, n_in, kernel, kernel)
            layer.weight.copy_(draw(shape, init, scale=scale, generator=generator, dtype=dtype))
            if bias:
                layer.bias.zero_()
        modules += [layer, act()]
        if pool > 1:
            modules.append(nn.MaxPool2d(pool))
            height, width = height // pool, width // pool
        n_in = n_out
    top = mlp(
        [n_in * height * width, *hidden, n_outputs],
        activation=activation,
        bias=bias,
        init=init,
        scale=scale,
        generator=generator,
        dtype=dtype,
    )
    return nn.Sequential(*modules, nn.Flatten(), *top)

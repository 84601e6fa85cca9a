"""Networks with an explicit initialisation: the papers' are each a plain ``nn.Sequential``.

Two are not, for rules on any network: a small :func:`resnet` and a small :func:`transformer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init

from ._checks import HOW, choose


class Erf(nn.Module):
    r"""The sigmoidal unit $g(u) = \operatorname{erf}(u/\sqrt 2)$ of Saad & Solla (1995).

    References: Saad & Solla (1995), https://doi.org/10.1103/PhysRevE.52.4225

    Example:
        >>> round(Erf()(torch.tensor(1.0)).item(), 4)  # of a normal variable within one sd
        0.6827
    """

    def forward(self, u: Tensor) -> Tensor:
        return torch.erf(u / math.sqrt(2))


class Scale(nn.Module):
    """Multiplication by a fixed number, such as the 1/sqrt(p) of a two-layer network.

    References: the scaled output of Song, Xu & Lafferty (2021), https://arxiv.org/abs/2106.06044

    Example:
        >>> Scale(0.5)(torch.tensor([1.0, -4.0])).tolist()
        [0.5, -2.0]
    """

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


def draw(
    shape: Sequence[int],
    init: str,
    *,
    scale: float = 1.0,
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
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
        out: a tensor of that shape, on the generator's device, to write into.

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
    if out is None:
        device = getattr(generator, "device", None)
        out = torch.empty(tuple(shape), dtype=dtype, device=device)
    if init == "zero":
        return out.zero_()
    if not isinstance(generator, Generator):
        raise ValueError(f"init {init!r} draws random numbers: pass {HOW}; got {generator!r}")
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale must be a finite number that is not negative; got {scale}")
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


@torch.no_grad()
def _start(layer: Any, init: str, scale: float, generator: Generator | None) -> nn.Module:
    """A layer whose weights are drawn from ``generator`` alone and whose biases are zero."""
    options: dict[str, Any] = {"scale": scale, "generator": generator, "dtype": layer.weight.dtype}
    layer.weight.copy_(draw(tuple(layer.weight.shape), init, **options))
    if layer.bias is not None:
        layer.bias.zero_()
    started: nn.Module = layer
    return started


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
        layer = skip_init(nn.Linear, n_in, n_out, bias=bias, dtype=dtype)
        modules += [_start(layer, init, scale, generator), act()]
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

    References: Song, Xu & Lafferty (2021), https://arxiv.org/abs/2106.06044

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
        modules += [_start(layer, init, scale, generator), act()]
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


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is projected where the shape changes.

    References: He, Zhang, Ren & Sun (2016), https://arxiv.org/abs/1512.03385

    Example:
        >>> Residual(4, 8, stride=2)(torch.zeros(2, 4, 16, 16)).shape  # half the side
        torch.Size([2, 8, 8, 8])
        >>> len(Residual(4, 4, stride=1).down)  # nothing to project
        0
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.down = nn.Sequential()
        if stride != 1 or n_in != n_out:
            project = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.down = nn.Sequential(project, nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.down(x))


class ResNet(nn.Module):
    """A stem, residual blocks, the mean over positions and a linear head; see :func:`resnet`.

    References: He, Zhang, Ren & Sun (2016), https://arxiv.org/abs/1512.03385

    Example:
        >>> net = resnet(3, [16, 32, 64], 10, blocks=3, generator=torch.Generator().manual_seed(0))
        >>> len(net.blocks), sum(p.numel() for p in net.parameters())  # ResNet-20
        (9, 272474)
    """

    def __init__(
        self, n_inputs: int, channels: Sequence[int], n_outputs: int, blocks: int, stride: int
    ) -> None:
        super().__init__()
        stem = nn.Conv2d(n_inputs, channels[0], 3, stride, 1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(channels[0]), nn.ReLU())
        stages: list[nn.Module] = []
        for n_in, n_out in pairwise([channels[0], *channels]):
            first = Residual(n_in, n_out, 1 if not stages else 2)
            stages += [first, *(Residual(n_out, n_out, 1) for _ in range(blocks - 1))]
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(channels[-1], n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return y


def resnet(
    n_inputs: int,
    channels: Sequence[int],
    n_outputs: int,
    *,
    blocks: int = 1,
    stride: int = 1,
    generator: Generator,
    dtype: torch.dtype | None = None,
) -> ResNet:
    """Residual network for small images, with batch normalisation.

    A 3 x 3 convolution, then a stage of residual blocks for each number of channels, each stage but
    the first at half the side, the mean over positions and a linear layer. ``[16, 32, 64]`` with
    three blocks a stage is ResNet-20. Convolutions start at $N(0, 2/n)$ for fan-in $n$, the
    linear layer as in :func:`.mlp`. Images that lie in memory as channels-last can crash PyTorch on
    a CPU where a stage has fewer than 16 channels (a strided 1 x 1 convolution in oneDNN writes out
    of bounds, see https://github.com/uxlfoundation/oneDNN/issues/6035): give contiguous ones, as
    :func:`fabook.data.load` does.

    Args:
        n_inputs: channels of an image.
        channels: channels of each stage.
        n_outputs: number of outputs.
        blocks: residual blocks of a stage.
        stride: of the first convolution, in pixels.
        generator: CPU generator of the weights.
        dtype: floating dtype.

    Raises:
        ValueError: for a size that is no positive number.

    References: He, Zhang, Ren & Sun (2016), https://arxiv.org/abs/1512.03385

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> resnet(3, [4, 8], 10, generator=g)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    _positive(
        n_inputs=n_inputs, channels=channels, n_outputs=n_outputs, blocks=blocks, stride=stride
    )
    with torch.random.fork_rng(devices=[]):  # what is drawn here is drawn anew below
        net = ResNet(n_inputs, channels, n_outputs, blocks, stride).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 4:
                shape = tuple(p.shape)
                p.copy_(draw(shape, "normal", scale=2**0.5, generator=generator, dtype=dtype))
        head = tuple(net.head.weight.shape)
        net.head.weight.copy_(draw(head, "uniform", generator=generator, dtype=dtype))
        net.head.bias.zero_()
    return net


class Transformer(nn.Module):
    """Embedded tokens and places, encoder layers and a linear head; see :func:`transformer`.

    References: Vaswani et al. (2017), https://arxiv.org/abs/1706.03762

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> net = transformer(7, 5, 3, pool=True, generator=g)
        >>> net(torch.zeros(2, 4, dtype=torch.long)).shape, net.place.shape  # shorter ones too
        (torch.Size([2, 3]), torch.Size([5, 32]))
    """

    def __init__(
        self,
        n_tokens: int,
        n_positions: int,
        n_outputs: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        pool: bool,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_tokens, width)
        self.place = nn.Parameter(torch.zeros(n_positions, width))
        options: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        each = (nn.TransformerEncoderLayer(width, heads, hidden, **options) for _ in range(layers))
        self.blocks = nn.Sequential(*each)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_outputs)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.blocks(self.embed(x) + self.place[: x.shape[1]]))
        y: Tensor = self.head(h.mean(1) if self.pool else h)
        return y


def transformer(
    n_tokens: int,
    n_positions: int,
    n_outputs: int,
    *,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
    hidden: int | None = None,
    pool: bool = False,
    generator: Generator,
    dtype: torch.dtype | None = None,
) -> Transformer:
    """Transformer encoder of ``nn.TransformerEncoderLayer``, normalised first, without dropout.

    Every position attends to every other. Matrices start Xavier-uniform, the two tables (of tokens
    and of places) at $N(0, 1/4)$, biases at zero.

    Args:
        n_tokens: different tokens.
        n_positions: longest sequence.
        n_outputs: number of outputs.
        width: numbers that stand for a token.
        layers: encoder layers.
        heads: heads of the attention, a divisor of ``width``.
        hidden: units of the layers' networks, by default twice the width.
        pool: one output from the mean over positions, (n, n_outputs), instead of one for each,
            (n, length, n_outputs).
        generator: CPU generator of the weights.
        dtype: floating dtype.

    Raises:
        ValueError: for a size that is no positive number, or heads that do not divide the width.

    References: Vaswani et al. (2017), https://arxiv.org/abs/1706.03762

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> transformer(7, 5, 3, generator=g)(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 3])
    """
    hidden = 2 * width if hidden is None else hidden
    _positive(n_tokens=n_tokens, n_positions=n_positions, n_outputs=n_outputs)
    _positive(width=width, layers=layers, heads=heads, hidden=hidden)
    if width % heads:
        raise ValueError(f"heads must divide the width; got {heads} heads and width {width}")
    with torch.random.fork_rng(devices=[]):  # what is drawn here is drawn anew below
        sizes = (n_tokens, n_positions, n_outputs, width, layers, heads, hidden)
        net = Transformer(*sizes, pool).to(dtype)
    tables = (net.embed.weight, net.place)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.ndim > 1:
                table = any(p is other for other in tables)
                init, scale = ("standard_normal", 0.5) if table else ("xavier_uniform", 1.0)
                shape = tuple(p.shape)
                p.copy_(draw(shape, init, scale=scale, generator=generator, dtype=dtype))
            elif name.endswith("bias"):
                p.zero_()
    return net


def _positive(**sizes: int | Sequence[int]) -> None:
    for name, size in sizes.items():
        found = [size] if isinstance(size, int) else list(size)
        if not found or any(n < 1 for n in found):
            raise ValueError(f"{name} must be positive; got {size}")

"""Networks that are no stack of layers, and how each is named."""

from torch import nn

from rules_by_hand import C, L, S


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = L(4, 4)

    def forward(self, x):
        return x + self.inner(x)


class Odd(nn.Linear):
    def forward(self, x):
        return super().forward(x).abs()


class Own(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


def hooked(module, kind):
    getattr(module, kind)(lambda *_: None)
    return module


def shared():
    layer = L(4, 4)
    return S(L(4, 4), layer, nn.Tanh(), layer, L(4, 2))


def tied():
    net = S(L(4, 4), nn.Tanh(), L(4, 4), L(4, 2))
    net[2].weight = net[0].weight
    return net


def shared_norm():
    norm = nn.LayerNorm(4)
    return S(L(4, 4), norm, L(4, 4), norm, L(4, 2))


def parametrised(what):
    layer = L(4, 4)
    if what == "weight":
        return nn.utils.parametrizations.weight_norm(layer)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    return layer


def around(module):
    return S(L(4, 4), S(nn.Tanh(), module), L(4, 2))


UNSUPPORTED = {
    "attention": (lambda: around(nn.MultiheadAttention(4, 2)), r"'1\.1' \(MultiheadAttention\)"),
    "lstm": (lambda: around(nn.LSTM(4, 4)), r"'1\.1' \(LSTM\)"),
    "gru cell": (lambda: around(nn.GRUCell(4, 4)), r"'1\.1' \(GRUCell\)"),
    "branch": (lambda: around(Branch()), r"'1\.1' \(Branch\)"),
    "transformer": (
        lambda: around(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)),
        r"'1\.1' \(TransformerEncoderLayer\)",
    ),
    "transposed convolution": (lambda: around(nn.ConvTranspose2d(4, 4, 2)), "ConvTranspose2d"),
    "convolution in one dimension": (lambda: around(nn.Conv1d(4, 4, 1)), "Conv1d"),
    "bilinear": (lambda: around(nn.Bilinear(4, 4, 4)), "Bilinear"),
    "embedding": (lambda: S(nn.Embedding(9, 4), L(4, 2)), r"'0' \(Embedding\)"),
    "norm below": (lambda: S(nn.LayerNorm(4), L(4, 2)), r"'0' \(LayerNorm\).*below the first"),
    "subclass": (lambda: around(Odd(4, 4)), r"'1\.1' \(Odd\)"),
    "own forward": (lambda: around(Own(L(4, 4))), r"'1\.1' \(Own\)"),
    "no sequence": (lambda: Branch(), r"\(Branch\).*nn\.Sequential"),
    "module list": (lambda: nn.ModuleList([L(4, 4)]), r"\(ModuleList\)"),
    "weight norm": (lambda: around(parametrised("weight")), r"'1\.1' \(Parametrized.*parametrised"),
    "bias": (lambda: around(parametrised("bias")), r"'1\.1' \(Parametrized.*parametrised"),
    "forward hook": (
        lambda: around(hooked(L(4, 4), "register_forward_hook")),
        r"'1\.1' \(Linear\) has hooks",
    ),
    "forward pre-hook": (
        lambda: around(hooked(nn.ReLU(), "register_forward_pre_hook")),
        r"'1\.1' \(ReLU\) has hooks",
    ),
    "backward hook": (
        lambda: around(hooked(nn.ReLU(), "register_full_backward_hook")),
        "has hooks",
    ),
    "backward pre-hook": (
        lambda: around(hooked(nn.ReLU(), "register_full_backward_pre_hook")),
        "has hooks",
    ),
    "hook on a container": (
        lambda: hooked(around(nn.ReLU()), "register_forward_hook"),
        r"\(Sequential\) has hooks",
    ),
    "lazy": (lambda: around(nn.LazyLinear(4)), r"'1\.1' \(LazyLinear\) is not initialised"),
    "shared layer": (shared, r"'3' \(Linear\) shares a parameter with module '1'"),
    "tied weights": (tied, r"'2' \(Linear\) shares a parameter with module '0'"),
    "shared norm": (shared_norm, r"'3' \(LayerNorm\) shares a parameter with module '1'"),
    "circular padding": (
        lambda: S(C(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), L(8, 2)),
        r"'0' \(Conv2d\) pads by 'circular'",
    ),
    "even same padding": (
        lambda: S(C(1, 2, 2, padding="same"), nn.Flatten(), L(8, 2)),
        r"'0' \(Conv2d\) pads 'same' with an even kernel",
    ),
    "no weights": (lambda: S(nn.Tanh()), "no nn.Linear or nn.Conv2d"),
}

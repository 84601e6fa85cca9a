r"""Feedback rules: given the output error, which error signal does each layer get?

Notation, for layers $l = 1, \dots, L$: input $h_{l-1}$, output
$z_l = W_l h_{l-1} + b_l$, activation $h_l = \phi(z_l)$, error signal
$\delta_l = \partial \mathcal L/\partial z_l$ or what a rule puts in its place,
$e = \delta_L$. Whatever the rule, the gradient of a layer is local:
$\delta_l h_{l-1}^T$ and $\delta_l$. The read-out always gets its true error $e$.
A rule is the formula for what arrives at $h_l$, before the derivative of the activation:

======= ================================ ========================================
BP      $W_{l+1}^T \delta_{l+1}$         Rumelhart, Hinton & Williams 1986
FA      $B_{l+1}^T \delta_{l+1}$         Lillicrap et al. 2016
DFA     $F_l e$                          Nøkland 2016
uSF     $B = s\,\mathrm{sign}(W)$        Liao, Leibo & Poggio 2016
frSF    $B = |R| \circ \mathrm{sign}(W)$ the same; R fixed
brSF    $B = |R| \circ \mathrm{sign}(W)$ the same; R drawn anew for every batch
KP      B takes the same steps as W      Kolen & Pollack 1994; Akrout et al. 2019
Shallow 0                                only the read-out learns
DRTP    $F_l y^*$                        Frenkel, Lefebvre & Bol 2021
======= ================================ ========================================
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .base import Rule
from .losses import Loss, target_error
from .stack import UnsupportedModule

__all__ = [
    "BP", "BRSF", "DFA", "DRTP", "FA", "FRSF", "RULES", "USF", "KolenPollack", "Rule", "Shallow",
    "UnsupportedModule",
]  # fmt: skip


class BP(Rule, label="BP", colour="#000000", law="weight", linear=True):
    r"""Backpropagation, $W_{l+1}^T \delta_{l+1}$.

    References: Rumelhart, Hinton & Williams (1986), https://doi.org/10.1038/323533a0

    Example:
        >>> from fabook.networks import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 3, 2], generator=g)
        >>> loss = BP(net).backward(torch.ones(5, 4), torch.zeros(5, dtype=torch.long))
        >>> net[0].weight.grad.shape, BP(net).feedback
        (torch.Size([3, 4]), {})
    """

    _is_true = True  # matrix is the weight at every update

    def matrix(self, layer: str) -> Tensor:
        return self.weight(layer)

    @property
    def feedback(self) -> dict[str, Tensor]:
        """None: the error goes down through the weights."""
        return {}


class FA(Rule, label="FA", colour="#0062D0", law="product", fixed=True):
    r"""Feedback alignment, $B_{l+1}^T \delta_{l+1}$ with fixed random $B_{l+1}$.

    ``feedback[l]`` has the shape of the weight above layer l, which it replaces.

    Args:
        net, generator, init, scale, feedback, input_shape: see :class:`Rule`.
        redraw_every: draw new matrices after so many updates; None keeps them.

    References: Lillicrap et al. (2016), https://arxiv.org/abs/1411.0247

    Example:
        >>> from fabook.networks import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> FA(mlp([4, 3, 2], generator=g), generator=g).feedback["0"].shape
        torch.Size([2, 3])
    """

    draws = True

    def __init__(self, net: nn.Module, *, redraw_every: int | None = None, **options: Any) -> None:
        if redraw_every is not None and redraw_every < 1:
            raise ValueError(f"redraw_every must be at least 1; got {redraw_every}")
        super().__init__(net, **options)
        self._every, self._done = redraw_every, 0
        self.fixed = type(self).fixed and redraw_every is None
        self._own = _own(options.get("generator")) if redraw_every else None

    def matrix(self, layer: str) -> Tensor:
        return self.drawn(layer)

    def refresh(self) -> None:
        if self._own is not None and self._every is not None:
            if self._done and self._done % self._every == 0:
                _redraw(self, self._own)
            self._done += 1

    def _settings(self) -> dict[str, Any]:
        drawn = {"scale": float(self._scale), "init": self._init} if self._every else {}
        return {"redraw_every": self._every, **drawn}

    def get_extra_state(self) -> dict[str, Any]:
        state = super().get_extra_state()
        if self._own is not None:
            state |= {"generator": self._own.get_state(), "updates": self._done}
        return state

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        if self._own is not None:
            self._done = state["updates"]
            self._own.set_state(state["generator"].cpu())


class USF(Rule, label="uSF", colour="#00AA64", law="product", linear=True):
    r"""Uniform sign-concordant feedback, $B = s\,\mathrm{sign}(W)$.

    $s = \sqrt{2/(\text{fan-in} + \text{fan-out})}$ times ``scale``, the root mean square of
    Xavier weights (the factor as in BioTorch). B has the shape of W.

    References: Liao, Leibo & Poggio (2016), https://arxiv.org/abs/1510.05067

    Example:
        >>> from fabook.networks import mlp
        >>> rule = USF(mlp([4, 3, 2], generator=torch.Generator().manual_seed(0)))
        >>> rule.feedback["0"].shape, rule.feedback["0"].abs().unique()
        (torch.Size([2, 3]), tensor([0.6325]))
    """

    _reuses = True

    def matrix(self, layer: str) -> Tensor:
        weight = self.weight(layer)
        receptive = math.prod(weight.shape[2:])
        s = math.sqrt(2 / ((weight.shape[0] + weight.shape[1]) * receptive))
        return torch.sign(weight, out=self.workspace(layer)).mul_(s * self._scale)

    def _settings(self) -> dict[str, Any]:
        return {"scale": float(self._scale)}


class FRSF(Rule, label="frSF", colour="#3F9EE0", law="product", linear=True):
    r"""Fixed random-magnitude sign-concordant feedback, $B = |R| \circ \mathrm{sign}(W)$.

    R is drawn once, Xavier-uniform by default, and kept as $|R|$; R and B have the shape of W.

    References: Liao, Leibo & Poggio (2016), https://arxiv.org/abs/1510.05067

    Example:
        >>> from fabook.networks import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 3, 2], generator=g)
        >>> bool((FRSF(net, generator=g).feedback["0"].sign() == net[2].weight.sign()).all())
        True
    """

    draws = True
    default_init = "xavier_uniform"
    _reuses = True

    def __init__(self, net: nn.Module, **options: Any) -> None:
        super().__init__(net, **options)
        self._keep_sizes()

    def _keep_sizes(self) -> None:
        for name in self.receivers:
            self.drawn(name).abs_()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        own = f"{prefix}feedback_"  # an older state has R with its signs, and keeps them
        sizes = {k: v.abs() for k, v in state_dict.items() if k.startswith(own)}
        super()._load_from_state_dict({**state_dict, **sizes}, prefix, *args)

    def matrix(self, layer: str) -> Tensor:
        return torch.sign(self.weight(layer), out=self.workspace(layer)).mul_(self.drawn(layer))


class BRSF(FRSF, label="brSF", colour="#CD8A00", linear=True):
    r"""Batch-wise random-magnitude sign-concordant feedback: R is drawn anew for every update.

    Measuring uses the last R and draws nothing. The rule's own generator, seeded from
    ``generator``, draws on the network's device; its state is part of ``state_dict``. R and B have
    the shape of W.

    References: Liao, Leibo & Poggio (2016), https://arxiv.org/abs/1510.05067

    Example:
        >>> from fabook.networks import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = BRSF(mlp([4, 3, 2], generator=g), generator=g)
        >>> before = rule.drawn("0").clone()
        >>> loss = rule.backward(torch.ones(1, 4), torch.tensor([0]))
        >>> bool((rule.drawn("0") == before).any())
        False
    """

    _reuses = True

    def __init__(self, net: nn.Module, *, generator: Generator | None = None, **options: Any):
        super().__init__(net, generator=generator, **options)
        self._own = _own(generator)

    def refresh(self) -> None:
        device = next(self.net.parameters()).device
        if self._own.device != device:  # the network has moved since: a stream of its own there
            self._own = Generator(device).manual_seed(_seed(self._own.get_state()))
        _redraw(self, self._own)
        self._keep_sizes()

    def _settings(self) -> dict[str, Any]:
        return {"scale": float(self._scale), "init": self._init}

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {
            "generator": self._own.get_state(),
            "device": self._own.device.type,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        home = next(self.net.parameters()).device
        if state["device"] in ("cpu", home.type):
            self._own = Generator(home if state["device"] == home.type else "cpu")
            self._own.set_state(state["generator"].cpu())
        else:  # of a device that the network is not on: as a network that moves away from it
            self._own = Generator().manual_seed(_seed(state["generator"]))


class KolenPollack(Rule, label="KP", colour="#6D4084", law="feedback", linear=True):
    r"""Kolen-Pollack learning: B gets the gradient of the weight in whose place it stands.

    B is a parameter of the rule. Given to the optimizer with the weights, as
    ``rule.parameters()`` has them, it takes the steps of W under that optimizer's own momentum,
    moments, decay and schedule; weight decay makes both meet (Akrout et al. 2019). Gradients are
    clipped, scaled and set to zero for ``rule.parameters()`` too. B has the shape of W.

    A step that W takes and B does not is an error at the next update; in a fused optimizer or
    through ``p.data``, which torch does not count as writes, it is noticed in the first updates
    only. Gradients that were changed for W alone are an error after ``backward``, and are not
    noticed in a loop of one's own. Nor is a step of another size, as of another learning rate.

    References: Kolen & Pollack (1994), https://doi.org/10.1109/ICNN.1994.374486;
    Akrout et al. (2019), https://arxiv.org/abs/1904.05391

    Example:
        >>> from fabook.networks import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = KolenPollack(mlp([4, 3, 2], generator=g), generator=g)
        >>> len(list(rule.parameters())), len(list(rule.net.parameters()))  # one B
        (5, 4)
    """

    draws = True
    learns = True

    def matrix(self, layer: str) -> Tensor:
        return self.drawn(layer)


class DFA(Rule, label="DFA", colour="#C0392B", law="product", fixed=True):
    r"""Direct feedback alignment, $F_l e$ with fixed random $F_l$ of shape (n_l, n_L).

    References: Nøkland (2016), https://arxiv.org/abs/1609.01596

    Example:
        >>> from fabook.networks import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = DFA(mlp([4, 3, 5, 2], generator=g), generator=g)
        >>> [tuple(f.shape) for f in rule.feedback.values()]
        [(3, 2), (5, 2)]
    """

    direct = True
    draws = True

    def matrix(self, layer: str) -> Tensor:
        return self.drawn(layer)

    def send(self, layer: str, delta: Tensor, top: Tensor) -> Tensor:
        return top @ self.matrix(layer).t()


class DRTP(DFA, label="DRTP", colour="#4A2400"):
    r"""Direct random target projection, $F_l y^*$: the target in place of the error.

    The one-hot label (or the real-valued target) keeps the factor that the loss puts on the error,
    see :func:`fabook.losses.target_error`. The sign is the paper's: $+F_l y^*$ stands in the
    gradient. Each F is (n_l, n_L).

    References: Frenkel, Lefebvre & Bol (2021), https://arxiv.org/abs/1909.01311

    Example:
        >>> from fabook.networks import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> DRTP(mlp([4, 3, 2], generator=g), generator=g).feedback["0"].shape
        torch.Size([3, 2])
    """

    def from_top(self, error: Tensor, target: Tensor, loss: Loss, reduction: str) -> Tensor:
        return target_error(error, target, loss, reduction)


class Shallow(Rule, label="Shallow", colour="#81818D", fixed=True):
    """Only the read-out learns: nothing arrives below (the reference every rule must beat).

    There is no B. ``.grad`` of the hidden layers is None, and zero in what ``gradients`` returns.

    References: a baseline of Frenkel, Lefebvre & Bol (2021), https://arxiv.org/abs/1909.01311

    Example:
        >>> from fabook.networks import mlp
        >>> rule = Shallow(mlp([4, 3, 2], generator=torch.Generator().manual_seed(0)))
        >>> found = rule.gradients(torch.ones(1, 4), torch.tensor([0]))
        >>> [bool(found[name].any()) for name in ("0.weight", "2.weight")], rule.feedback
        ([False, True], {})
    """

    def matrix(self, layer: str) -> Tensor:
        return torch.zeros_like(self.weight(layer))

    def send(self, layer: str, delta: Tensor, top: Tensor) -> None:
        return None

    @property
    def feedback(self) -> dict[str, Tensor]:
        """None: nothing is sent."""
        return {}


def _own(generator: Generator | None) -> Generator:
    """A generator that the rule keeps, seeded from the one it was given."""
    if generator is None:
        return Generator().manual_seed(0)
    drawn = torch.randint(2**62, (), generator=generator, device=generator.device)
    return Generator().manual_seed(int(drawn))


def _seed(state: Tensor) -> int:
    return int.from_bytes(hashlib.sha256(state.cpu().numpy().tobytes()).digest()[:7], "big")


def _redraw(rule: Rule, generator: Generator) -> None:
    for name in rule.receivers:
        held = rule.drawn(name)
        drawn = rule._random(tuple(held.shape), generator, out=held)
        if drawn is not held:
            held.copy_(drawn)


RULES: dict[str, type[Rule]] = {
    rule.label: rule for rule in (BP, FA, DFA, USF, FRSF, BRSF, KolenPollack, DRTP, Shallow)
}

"""Song, Xu & Lafferty (2021), *Convergence and alignment of gradient descent with random
backpropagation weights* (https://arxiv.org/abs/2106.06044).

``reduction`` trains two-layer networks at the cost of what n samples see of them; ``kernels`` holds
the kernels G and H, their limits, and the alignment that they and a constant penalty predict.
"""

from . import kernels, readout, reduction

__all__ = ["kernels", "readout", "reduction"]

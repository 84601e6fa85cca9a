"""The projection onto a layer's structure against least squares on the layer itself."""

from __future__ import annotations

import pytest
import torch

from fabook import stream
from fabook.metrics import cosine
from fabook.theory.refinetti2021.convolution import attainable_cosine


def target(c_in: int, c_out: int, side: int, kernel: int, outputs: int = 10) -> torch.Tensor:
    g = stream(0, "structure")
    d_out = side - kernel + 1
    f_in = torch.randn(c_in * side**2, outputs, generator=g, dtype=torch.float64)
    f_out = torch.randn(c_out * d_out**2, outputs, generator=g, dtype=torch.float64)
    return f_out @ f_in.T


@pytest.mark.parametrize(("side", "kernel"), [(5, 3), (4, 1), (4, 4)])
def test_convolution_equals_least_squares_over_its_weights(side: int, kernel: int) -> None:
    c_in, c_out = 2, 3
    t = target(c_in, c_out, side, kernel)
    basis = []
    for k in range(c_out * c_in * kernel**2):
        weight = torch.zeros(c_out * c_in * kernel**2, dtype=torch.float64)
        weight[k] = 1
        eye = torch.eye(c_in * side**2, dtype=torch.float64).reshape(-1, c_in, side, side)
        weight = weight.reshape(c_out, c_in, kernel, kernel)
        basis.append(torch.nn.functional.conv2d(eye, weight).flatten(1).T.flatten())
    matrix = torch.stack(basis, 1)
    best = matrix @ torch.linalg.lstsq(matrix, t.reshape(-1, 1)).solution
    expected = cosine(best.flatten(), t.flatten())
    assert attainable_cosine(t, (c_in, c_out), side, kernel) == pytest.approx(float(expected))
    seen = (matrix != 0).any(1).reshape(t.shape)  # what any kernel weight touches
    local = cosine(t * seen, t)
    got = attainable_cosine(t, (c_in, c_out), side, kernel, structure="local")
    assert got == pytest.approx(float(local))


def test_kernel_as_large_as_the_image_is_fully_connected() -> None:
    t = target(2, 3, 4, 4)
    assert attainable_cosine(t, (2, 3), 4, 4) == pytest.approx(1)
    assert attainable_cosine(t, (2, 3), 4, 4, structure="full") == 1


@pytest.mark.parametrize(("structure", "law"), [("convolution", 3 / 80), ("local", 0.3)])
def test_random_targets_obey_the_law(structure: str, law: float) -> None:
    t = target(16, 16, 10, 3)
    got = attainable_cosine(t, (16, 16), 10, 3, structure=structure)
    assert got == pytest.approx(law, rel=0.1)


def test_wrong_arguments_are_named() -> None:
    t = target(2, 3, 4, 2)
    with pytest.raises(ValueError, match="structure must be one of"):
        attainable_cosine(t, (2, 3), 4, 2, structure="toeplitz")
    with pytest.raises(ValueError, match=r"kernel must lie in \[1, 4\]"):
        attainable_cosine(t, (2, 3), 4, 5)
    with pytest.raises(ValueError, match=r"shape \(48, 32\); got \(27, 32\)"):
        attainable_cosine(t, (2, 3), 4, 1)

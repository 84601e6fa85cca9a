"""Wrong labels: clouds, margins and errors against draws."""

import numpy as np
import pytest
import torch

from fabook.theory import robertson2023

double = torch.float64


def drawn(d, wrong, seed, n=60, signal=100.0):
    g = torch.Generator().manual_seed(seed)
    return robertson2023.clouds(n, d, signal=signal, wrong=wrong, generator=g)


def test_clouds_have_their_centres_their_noise_and_their_wrong_labels():
    data = drawn(2000, 0.2, 3, n=400)
    assert int((data.y != data.given).sum()) == 80
    assert float(data.y.sum()) == 0
    assert float(data.direction.square().sum()) == pytest.approx(100)
    middle = (data.y[:, None] * data.X).mean(0) * 2000**0.5
    assert float(middle @ data.direction) / 100 == pytest.approx(1, abs=0.05)
    noise = data.X * 2000**0.5 - data.y[:, None] * data.direction
    assert float(noise.square().mean()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("wrong", [0.0, 0.2])
@pytest.mark.parametrize("d", [240, 960, 3840])
def test_margin_of_the_minimum_norm_fit(d, wrong):
    seen = []
    for seed in range(12):
        data = drawn(d, wrong, seed)
        beta = robertson2023.solution(data.X, data.given[:, None])
        seen.append(robertson2023.margin(beta, data.direction))
    said = robertson2023.minimum_norm_margin(60, d, signal=100.0, wrong=wrong)
    assert np.mean(seen) == pytest.approx(float(said), rel=0.06)


def test_a_part_outside_the_data_lowers_the_margin():
    data = drawn(1920, 0.2, 0)
    beta = robertson2023.solution(data.X, data.given[:, None])[:, 0]
    away = torch.randn(1920, generator=torch.Generator().manual_seed(0), dtype=double)
    away = away - torch.linalg.pinv(data.X) @ (data.X @ away)
    away = 1.5 * np.linalg.norm(beta) * away.numpy() / float(away.norm())
    fits = [beta + sign * away for sign in (1, -1)]
    for fit in fits:
        np.testing.assert_allclose(data.X.numpy() @ fit, data.given.numpy(), atol=1e-9)
    seen = np.mean([robertson2023.margin(fit, data.direction) for fit in fits])
    assert seen == pytest.approx(robertson2023.margin(beta, data.direction) / (1 + 1.5**2) ** 0.5)
    ratio = robertson2023.minimum_norm_margin(60, 1920, signal=100.0, outside=[0.0, 1.5])
    assert ratio[1] / ratio[0] == pytest.approx((1 + 1.5**2) ** -0.5)


def test_error_is_the_normal_tail_of_the_margin():
    from scipy.special import ndtr

    data = drawn(600, 0.0, 1, signal=4.0)
    beta = robertson2023.solution(data.X, data.y[:, None])[:, 0]
    fresh = torch.randn(20_000, 600, generator=torch.Generator().manual_seed(9), dtype=double)
    wrong = float(((fresh + data.direction) @ torch.as_tensor(beta) < 0).double().mean())
    assert wrong == pytest.approx(ndtr(-robertson2023.margin(beta, data.direction)), abs=0.01)


def test_clouds_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="half of each"):
        drawn(10, 0.0, 0, n=5)
    with pytest.raises(ValueError, match=r"0\.7"):
        drawn(10, 0.7, 0)
    with pytest.raises(ValueError, match="larger than n"):
        robertson2023.minimum_norm_margin(10, 12, signal=1.0)

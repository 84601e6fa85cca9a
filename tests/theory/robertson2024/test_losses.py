"""The two losses refuse what would be another one."""

from __future__ import annotations

import pytest
import torch

from fabook.theory import robertson2024 as dom


def test_what_would_be_another_loss_in_silence_is_refused() -> None:
    f, y = torch.ones(4, 1), torch.tensor([1.0, -1.0, 1.0, -1.0])
    for loss in dom.LOSS_FUNCTIONS.values():
        with pytest.raises(ValueError, match=r"\(4, 1\) and targets \(4,\) must be of one shape"):
            loss(f, y)
    with pytest.raises(ValueError, match="plus or minus one"):
        dom.logistic(f[:, 0], (y > 0).float())

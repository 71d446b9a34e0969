"""The algebra of a repair."""

import pytest
import torch
from torch.testing import assert_close

from convert.repairing import solving
from convert.repairing.solving import Sums, solved


def problem(groups=2, outputs=7, inputs=30, rows=200):
    x = torch.randn(groups, rows, inputs, dtype=torch.float64).cumsum(-1)
    matrix = torch.randn(groups, outputs, inputs, dtype=torch.float64)
    targets = x @ matrix.mT
    kept = torch.rand(matrix.shape) < 0.6
    kept[:, 0] = False
    sums = Sums(matrix)
    for part, wanted in zip(x.split(64, 1), targets.split(64, 1), strict=True):
        sums.add(part, wanted)
    return sums, matrix * kept, kept, x, targets


def test_the_error_is_that_of_the_rows():
    sums, matrix, _, x, targets = problem()
    assert sums.error(matrix) == pytest.approx(float((x @ matrix.mT - targets).square().sum() / targets.square().sum()))


@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_conjugate_gradients_find_what_factors_find(damping, monkeypatch):
    sums, matrix, kept, _, _ = problem()
    expected = solved(sums, matrix, kept, damping)
    monkeypatch.setattr(solving, "FACTORISED", 0)
    found = solved(sums, matrix, kept, damping)
    assert not torch.equal(found, expected)
    assert sums.error(found) < 1.05 * sums.error(expected) < 0.5 * sums.error(matrix)
    assert torch.equal(found[~kept], matrix[~kept])


def test_the_gradient_of_what_is_solved_is_zero():
    sums, matrix, kept, _, _ = problem()
    found = solved(sums, matrix, kept, 0.05)
    damping = 0.05 * sums.inputs.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    slope = found @ sums.inputs - sums.both + damping * (found - matrix)
    assert_close(slope[kept], torch.zeros_like(slope[kept]), atol=1e-6, rtol=0)
    assert float(slope[~kept].abs().max()) > 1


def test_without_damping_the_change_is_the_smallest_of_the_best():
    matrix = torch.zeros(1, 1, 2, dtype=torch.float64)
    sums = Sums(matrix)
    x = torch.randn(1, 9, 1, dtype=torch.float64).expand(1, 9, 2)
    sums.add(x, 2 * x[..., :1])
    assert_close(solved(sums, matrix, torch.ones_like(matrix, dtype=torch.bool), 0.0), torch.ones_like(matrix))

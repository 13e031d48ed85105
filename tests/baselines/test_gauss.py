import math

import torch

from loe_field.baselines import Gauss, GaussOptions
from loe_field.baselines.gauss import gaussian


def test_values_and_derivative():
    z = torch.linspace(-1, 1, 41, dtype=torch.float64).requires_grad_()
    out = gaussian(z, 0.3)
    torch.testing.assert_close(gaussian(torch.tensor([0.0, 0.3, -0.6]), 0.3), torch.tensor([0.0, -0.5, -2.0]).exp())
    out.sum().backward()
    torch.testing.assert_close(z.grad, -z / 0.3**2 * out)
    assert out.argmax() == 20


def test_default_width_is_a_scale_of_30():
    z = torch.linspace(-0.1, 0.1, 21, dtype=torch.float64)
    torch.testing.assert_close(gaussian(z, GaussOptions().sigma), torch.exp(-((30 * z) ** 2)))


def test_the_formula_on_the_authors_ranges():
    net = Gauss(num_layers=3, layer_width=5, out_features=2, options=GaussOptions(sigma=0.4)).double()
    p = torch.rand(10, 2, dtype=torch.float64)
    first, second, last = net.layers
    h = torch.exp(-(second(torch.exp(-(first(2 * p - 1) ** 2) / 0.32)) ** 2) / 0.32)
    torch.testing.assert_close(2 * net(p) - 1, last(h))
    assert first.weight.abs().max() <= 1 / math.sqrt(2)

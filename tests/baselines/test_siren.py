import math

import numpy as np
import torch
from scipy import stats

from loe_field.baselines import Siren, SirenOptions


def test_activations_keep_their_distribution_through_depth():
    """Sitzmann et al., section 3.2: W h is standard normal (in phase), sines are arcsine distributed, at any depth."""
    torch.manual_seed(0)
    net = Siren(num_layers=9, layer_width=512)
    x = 2 * torch.rand(500, 2) - 1
    with torch.no_grad():
        for i, layer in enumerate(net.layers[:-1]):
            products = 30 * (x @ layer.weight.T)
            if i > 0:
                assert 0.9 < products.std() < 1.1
                assert stats.kstest(products.flatten()[::7].numpy(), "norm").statistic < 0.04
            x = torch.sin(products + 30 * layer.bias)
            assert 0.45 < x.var() < 0.55
            assert stats.kstest(x.flatten()[::7].numpy(), stats.arcsine(-1, 2).cdf).statistic < 0.04


def test_bounds_of_the_initial_weights():
    torch.manual_seed(0)
    net = Siren(out_features=3, options=SirenOptions(omega_0=20, hidden_omega_0=10))
    bounds = [layer.weight.abs().max().item() for layer in net.layers]
    hidden = math.sqrt(6 / 256) / 10
    np.testing.assert_allclose(bounds[1:], [hidden] * 4, rtol=0.02)
    np.testing.assert_allclose(bounds[0], 1 / 2, rtol=0.02)
    assert max(bounds[1:]) <= hidden + 1e-7


def test_the_formula_on_the_authors_ranges():
    net = Siren(num_layers=3, layer_width=5, out_features=2, options=SirenOptions(omega_0=4, hidden_omega_0=3)).double()
    p = torch.rand(10, 2, dtype=torch.float64)
    first, second, last = net.layers
    h = torch.sin(3 * second(torch.sin(4 * first(2 * p - 1))))
    torch.testing.assert_close(2 * net(p) - 1, last(h))

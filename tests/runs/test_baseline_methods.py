"""Methods for comparison: what they have in common with loe-nerf."""

from dataclasses import replace

from loe_field.methods import loe_nerf
from loe_field.runs import baseline_methods
from loe_field.runs.suite import COMPARED


def test_adam_is_all_that_differs_from_loe_nerf():
    ours, adam = loe_nerf.config, baseline_methods.loe_nerf_adam.config
    optimizers = {**ours.optimizers, "experts": ours.optimizers["fields"]}
    assert adam == replace(ours, method_name="loe-nerf-adam", optimizers=optimizers)
    assert adam.optimizers["experts"] != ours.optimizers["experts"]


def test_each_has_the_name_by_which_it_is_shown():
    for name in COMPARED:
        assert getattr(baseline_methods, name.replace("-", "_")).config.method_name == name

"""Levels-of-Experts neural fields with sine activation: one layer, in 2D and 3D, and a plugin for nerfstudio."""

from loe_field.errors import InputError
from loe_field.export.fields import load_field, save_field
from loe_field.fit import ImageFit, fit_image, fit_images, shared_start
from loe_field.network.layers import LoEMLP, PositionalEncoding, PositionDependentLinear
from loe_field.network.ops import position_dependent_linear
from loe_field.network.reference import position_dependent_linear_ref
from loe_field.network.tiling import (
    BiasTile,
    FeatureGrid,
    Level,
    blending_weights,
    expert_index,
    fine_to_coarse,
    gray_code,
    make_levels,
    quad_tree,
)
from loe_field.render.dataset import FieldDataset
from loe_field.version import __version__

__all__ = [
    "BiasTile",
    "FeatureGrid",
    "FieldDataset",
    "ImageFit",
    "InputError",
    "Level",
    "LoEMLP",
    "PositionDependentLinear",
    "PositionalEncoding",
    "__version__",
    "blending_weights",
    "expert_index",
    "fine_to_coarse",
    "fit_image",
    "fit_images",
    "gray_code",
    "load_field",
    "make_levels",
    "position_dependent_linear",
    "position_dependent_linear_ref",
    "quad_tree",
    "save_field",
    "shared_start",
]

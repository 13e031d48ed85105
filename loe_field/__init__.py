"""Levels-of-Experts neural fields with sine activation: one layer, in 2D and 3D, and a plugin for nerfstudio."""

from importlib.metadata import PackageNotFoundError, version

from loe_field.errors import InputError
from loe_field.fit import ImageFit, fit_image
from loe_field.layers import LoEMLP, PositionalEncoding, PositionDependentLinear
from loe_field.ops import position_dependent_linear
from loe_field.reference import position_dependent_linear_ref
from loe_field.tiling import Level, blending_weights, expert_index, fine_to_coarse, gray_code, make_levels, quad_tree

try:
    __version__ = version("loe-field")
except PackageNotFoundError:  # used straight from a source folder, not installed
    __version__ = "0+unknown"

__all__ = [
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
    "gray_code",
    "make_levels",
    "position_dependent_linear",
    "position_dependent_linear_ref",
    "quad_tree",
]

"""The methods' recipes, constants that nothing may change; see entry_points.py for the host's way to them."""

from dataclasses import replace

from nerfstudio.plugins.types import MethodSpecification

from loe_field.adapter.model import SignalModelConfig
from loe_field.adapter.network import LoEConfig
from loe_field.image.config import ImageDataManagerConfig, ImagePipelineConfig
from loe_field.nerf.trainer import NerfTrainerConfig
from loe_field.runs.images import ImagesTrainerConfig
from loe_field.runs.series import PicturesTrainerConfig
from loe_field.training.optimizers import AdamConfig, DecayConfig, MuonConfig, grid_config

loe_image = MethodSpecification(
    config=PicturesTrainerConfig(
        method_name="loe-image",
        optimizers={
            "experts": {"optimizer": MuonConfig(), "scheduler": DecayConfig()},
            "fields": {"optimizer": AdamConfig(), "scheduler": DecayConfig()},
            "grid": {"optimizer": grid_config(), "scheduler": DecayConfig()},
        },
    ),
    description="Fit a picture with a Levels-of-Experts field and sine activation: the recipe that measured best.",
)

loe_image_smooth = MethodSpecification(
    config=replace(
        loe_image.config,
        method_name="loe-image-smooth",
        pipeline=ImagePipelineConfig(
            datamanager=ImageDataManagerConfig(off_grid=0.5),
            model=SignalModelConfig(
                loe=LoEConfig(num_frequencies=9, expert_levels=3, bias_tile_size=None, bias_levels="fine")
            ),
        ),
        optimizers={
            **loe_image.config.optimizers,
            "grid": {"optimizer": grid_config(3e-2), "scheduler": DecayConfig()},
        },
    ),
    description="Fit a picture between its pixels too: half of each step lies on the cubic spline through them.",
)

loe_image_paper = MethodSpecification(
    config=replace(
        loe_image.config,
        method_name="loe-image-paper",
        max_num_iterations=9000,
        pipeline=ImagePipelineConfig(
            datamanager=ImageDataManagerConfig(pixels_per_batch=8192),
            model=SignalModelConfig(loe=LoEConfig(num_layers=10, tile_size=2, num_frequencies=0)),
        ),
        optimizers={
            **loe_image.config.optimizers,
            **{
                group: {"optimizer": AdamConfig(lr=1e-2, beta2=0.95), "scheduler": DecayConfig()}
                for group in ("experts", "fields")
            },
        },
    ),
    description="Fit a picture as in 'A Dive into Levels-of-Experts and Sine Activation': raw coordinates, Adam.",
)

loe_images = MethodSpecification(
    config=ImagesTrainerConfig(method_name="loe-images"),
    description="Fit a field to each of thousands of small pictures, many at once: a set to learn on.",
)

loe_nerf = MethodSpecification(
    config=NerfTrainerConfig(
        method_name="loe-nerf",
        optimizers={
            "experts": {"optimizer": MuonConfig(), "scheduler": DecayConfig(warmup_steps=50)},
            "fields": {"optimizer": AdamConfig(), "scheduler": DecayConfig(warmup_steps=50)},
            "grid": {"optimizer": grid_config(), "scheduler": DecayConfig(warmup_steps=50)},
            "camera_opt": {"optimizer": AdamConfig(lr=1e-3), "scheduler": DecayConfig()},
        },
    ),
    description="Fit a radiance field with a feature grid and a small sine network.",
)

PICTURES = (loe_image, loe_image_smooth, loe_image_paper)
"""Those that fit one picture."""

"""The methods that `ns-train` finds through the entry points of this package.

nerfstudio imports this module at the start of each of its tools: it must not fail, and it does nothing but define.
"""

from dataclasses import replace

from nerfstudio.engine.optimizers import RAdamOptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

from loe_field.image.datamanager import ImageDataManagerConfig
from loe_field.image.model import LoEImageModelConfig
from loe_field.image.pipeline import ImagePipelineConfig
from loe_field.image.trainer import ImageTrainerConfig
from loe_field.nerf.peers import PeerNerfactoConfig, PeerVanillaNerfConfig
from loe_field.nerf.pipeline import NerfPipelineConfig
from loe_field.nerf.trainer import NerfTrainerConfig
from loe_field.training.optimizers import AdamConfig, DecayConfig, MuonConfig

loe_image = MethodSpecification(
    config=ImageTrainerConfig(
        method_name="loe-image",
        optimizers={
            "experts": {"optimizer": MuonConfig(), "scheduler": DecayConfig()},
            "fields": {"optimizer": AdamConfig(), "scheduler": DecayConfig()},
        },
    ),
    description="Fit a picture with a Levels-of-Experts field and sine activation: the recipe that measured best.",
)

loe_image_smooth = MethodSpecification(
    config=replace(
        loe_image.config,
        method_name="loe-image-smooth",
        pipeline=ImagePipelineConfig(
            datamanager=ImageDataManagerConfig(off_grid=0.5), model=LoEImageModelConfig(num_frequencies=9)
        ),
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
            model=LoEImageModelConfig(num_layers=10, tile_size=2, num_frequencies=0),
        ),
        optimizers={
            group: {"optimizer": AdamConfig(lr=1e-2, beta2=0.95), "scheduler": DecayConfig()}
            for group in ("experts", "fields")
        },
    ),
    description="Fit a picture as in 'A Dive into Levels-of-Experts and Sine Activation': raw coordinates, Adam.",
)

loe_nerf = MethodSpecification(
    config=NerfTrainerConfig(
        method_name="loe-nerf",
        optimizers={
            "experts": {"optimizer": MuonConfig(), "scheduler": DecayConfig(warmup_steps=50)},
            "fields": {"optimizer": AdamConfig(), "scheduler": DecayConfig(warmup_steps=50)},
            "camera_opt": {"optimizer": AdamConfig(lr=1e-3), "scheduler": DecayConfig()},
        },
    ),
    description="Fit a radiance field with levels of experts and sine activation.",
)

loe_nerf_adam = MethodSpecification(
    config=replace(
        loe_nerf.config,
        method_name="loe-nerf-adam",
        optimizers={**loe_nerf.config.optimizers, "experts": loe_nerf.config.optimizers["fields"]},
    ),
    description="loe-nerf without Muon: for comparisons.",
)

peer_nerfacto = MethodSpecification(
    config=NerfTrainerConfig(
        method_name="peer-nerfacto",
        pipeline=NerfPipelineConfig(model=PeerNerfactoConfig()),
        optimizers={
            group: {
                "optimizer": AdamConfig(lr=lr, eps=1e-15, beta2=0.999),
                "scheduler": DecayConfig(kind="exponential", final_factor=0.0001 / lr),
            }
            for group, lr in (("proposal_networks", 1e-2), ("fields", 1e-2), ("camera_opt", 1e-3))
        },
    ),
    description="The host's nerfacto, trained and measured as loe-nerf is: for comparisons.",
)

peer_vanilla_nerf = MethodSpecification(
    config=NerfTrainerConfig(
        method_name="peer-vanilla-nerf",
        pipeline=NerfPipelineConfig(model=PeerVanillaNerfConfig()),
        optimizers={"fields": {"optimizer": RAdamOptimizerConfig(lr=5e-4, eps=1e-8), "scheduler": None}},
    ),
    description="The host's vanilla-nerf, trained and measured as loe-nerf is: for comparisons.",
)

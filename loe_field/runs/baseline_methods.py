"""Methods for comparison with loe-nerf, which `ns-train` does not list: loe-bench shows them to its runs.

So does `NERFSTUDIO_METHOD_CONFIGS=baseline-nerfacto=loe_field.runs.baseline_methods:baseline_nerfacto` before any of
the host's commands; ns-eval and ns-viewer want it too for such a run.
"""

from nerfstudio.engine.optimizers import RAdamOptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

from loe_field.baselines.scenes import BaselineNerfactoConfig, BaselineVanillaNerfConfig
from loe_field.nerf.pipeline import NerfPipelineConfig
from loe_field.nerf.trainer import NerfTrainerConfig
from loe_field.training.optimizers import AdamConfig, DecayConfig, grid_config

_FIELD = {"optimizer": AdamConfig(), "scheduler": DecayConfig(warmup_steps=50)}
_GRID = {"optimizer": grid_config(), "scheduler": DecayConfig(warmup_steps=50)}
_CAMERAS = {"optimizer": AdamConfig(lr=1e-3), "scheduler": DecayConfig()}

loe_nerf_adam = MethodSpecification(
    config=NerfTrainerConfig(
        method_name="loe-nerf-adam",
        optimizers={"experts": _FIELD, "fields": _FIELD, "grid": _GRID, "camera_opt": _CAMERAS},
    ),
    description="loe-nerf without Muon.",
)

baseline_nerfacto = MethodSpecification(
    config=NerfTrainerConfig(
        method_name="baseline-nerfacto",
        pipeline=NerfPipelineConfig(model=BaselineNerfactoConfig()),
        optimizers={
            group: {
                "optimizer": AdamConfig(lr=lr, eps=1e-15, beta2=0.999),
                "scheduler": DecayConfig(kind="exponential", final_factor=0.0001 / lr),
            }
            for group, lr in (("proposal_networks", 1e-2), ("fields", 1e-2), ("camera_opt", 1e-3))
        },
    ),
    description="The host's nerfacto, trained and measured as loe-nerf is.",
)

baseline_vanilla_nerf = MethodSpecification(
    config=NerfTrainerConfig(
        method_name="baseline-vanilla-nerf",
        pipeline=NerfPipelineConfig(model=BaselineVanillaNerfConfig()),
        optimizers={"fields": {"optimizer": RAdamOptimizerConfig(lr=5e-4, eps=1e-8), "scheduler": None}},
    ),
    description="The host's vanilla-nerf, trained and measured as loe-nerf is.",
)

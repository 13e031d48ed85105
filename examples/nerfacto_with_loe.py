"""nerfstudio's nerfacto with this package's feature grids and sine layers in place of its hash grids and ReLU layers.

    export PYTHONPATH=examples NERFSTUDIO_METHOD_CONFIGS=nerfacto-loe=nerfacto_with_loe:method
    ns-train nerfacto-loe --data SCENE

Every command of nerfstudio knows the method while the variables are set. Sampling, colour, losses, optimizers and
learning rates are nerfacto's, and its options say how large the grids are. Only what turns a place into density and
features is exchanged, in the field and in the networks that propose where to sample.
"""

from dataclasses import dataclass, field, replace

from nerfstudio.plugins.types import MethodSpecification

from loe_field import FeatureGrid, LoEMLP
from loe_field.baselines.scenes import BaselineNerfacto, BaselineNerfactoConfig
from loe_field.nerf.fields import LoEEncoding
from loe_field.runs.baseline_methods import baseline_nerfacto


def encoding(
    out_features: int, width: int, levels: int, max_res: int, log2_size: int, features: int = 2
) -> LoEEncoding:
    """Coordinates in [0, 1] to numbers: a feature grid and two layers, with a sine between them."""
    grid = FeatureGrid(levels, features, min_resolution=16, max_resolution=max_res, table_size=2**log2_size)
    return LoEEncoding(
        LoEMLP(dim=3, out_features=out_features, num_layers=2, layer_width=width, tile_size=1, grid=grid)
    )


@dataclass
class NerfactoWithLoEConfig(BaselineNerfactoConfig):
    """The host's options of nerfacto."""

    _target: type = field(default_factory=lambda: NerfactoWithLoE)


class NerfactoWithLoE(BaselineNerfacto):
    """The host's NerfactoModel; BaselineNerfacto leaves out LPIPS, for which the host downloads weights."""

    config: NerfactoWithLoEConfig

    def populate_modules(self) -> None:
        """Build what the host builds, then exchange the grids and the layers behind them."""
        super().populate_modules()
        c = self.config
        sizes = (c.hidden_dim, c.num_levels, c.max_res, c.log2_hashmap_size, c.features_per_level)
        self.field.mlp_base = encoding(1 + self.field.geo_feat_dim, *sizes)
        for i, proposal in enumerate(self.proposal_networks):
            of = c.proposal_net_args_list[min(i, len(c.proposal_net_args_list) - 1)]
            proposal.mlp_base = encoding(1, of["hidden_dim"], of["num_levels"], of["max_res"], of["log2_hashmap_size"])
            proposal.encoding = None


base = baseline_nerfacto.config
method = MethodSpecification(
    config=replace(base, method_name="nerfacto-loe", pipeline=replace(base.pipeline, model=NerfactoWithLoEConfig())),
    description="nerfacto with feature grids and sine layers of loe_field.",
)

"""nerfstudio's DataManager for posed pictures, with everything on the device."""

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from loe_field.nerf.rays import RayTable


@dataclass
class SceneDataManagerConfig(VanillaDataManagerConfig):
    """The scene and its batches of rays."""

    _target: type = field(default_factory=lambda: SceneDataManager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=NerfstudioDataParserConfig)
    """How the scene is read."""
    train_num_rays_per_batch: int = 1024
    """Rays per step, drawn from all pixels of all pictures."""


class SceneDataManager(VanillaDataManager[InputDataset]):
    """The host's data manager, whose training rays come from a RayTable."""

    config: SceneDataManagerConfig

    def setup_train(self) -> None:
        """Put all pixels and directions on the device."""
        seed = (torch.initial_seed() + self.local_rank) % 2**31
        self.rays = RayTable(self.train_dataset, self.device, seed=seed)

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Tensor]]:
        """Rays [N], and {"image": colours [N, channels], "indices": camera, row and column [N, 3]}."""
        self.train_count += 1
        return self.rays.batch(step, self.config.train_num_rays_per_batch)

    def get_train_rays_per_batch(self) -> int:
        """Rays per step."""
        return self.config.train_num_rays_per_batch

    def get_param_groups(self) -> dict[str, list[Any]]:
        """Nothing here is learned."""
        return {}

"""nerfstudio's DataManager for posed pictures, with everything on the device."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from loe_field.errors import InputError
from loe_field.nerf.parser import LookingParser, parser_class
from loe_field.nerf.pictures import PosedPictures
from loe_field.nerf.rays import RayTable
from loe_field.nerf.scene import check_scene, usable
from loe_field.training.config import require_at_least
from loe_field.training.defaults import defaults_for, device_of


@dataclass
class SceneDataManagerConfig(VanillaDataManagerConfig):
    """The scene and its batches of rays."""

    _target: type = field(default_factory=lambda: SceneDataManager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=NerfstudioDataParserConfig)
    """How the scene is read."""
    train_num_rays_per_batch: int | None = None  # type: ignore[assignment]
    """Rays per step, drawn from all pixels of all pictures. None: 1,024 on a CPU, 4,096 on a GPU.
    Several processes share them."""


class SceneDataManager(VanillaDataManager[InputDataset]):
    """The host's data manager, whose training rays come from a RayTable."""

    config: SceneDataManagerConfig
    dataparser: LookingParser
    held_out: bool
    """Whether the evaluation set has views that are not trained on."""
    train_pixel_sampler: RayTable  # type: ignore[assignment]

    def __init__(
        self, config: SceneDataManagerConfig, device: torch.device | str = "cpu", *args: Any, **kwargs: Any
    ) -> None:
        require_at_least(1, config, "train_num_rays_per_batch", prefix="pipeline.datamanager.")
        if config.train_num_rays_per_batch is None:
            config.train_num_rays_per_batch = defaults_for(device_of(device)).rays_per_batch
        if config.data is not None:
            config.dataparser.data = config.data
        elif config.dataparser.data != Path():
            config.dataparser.data = config.dataparser.data.expanduser().resolve()
        check_scene(config.dataparser)
        # The host's cameras index in a way that newer versions of torch warn of with every picture; nothing is wrong.
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence", category=UserWarning)
        host = config.dataparser._target
        config.dataparser._target = parser_class(host)
        try:
            super().__init__(config, device, *args, **kwargs)
        finally:
            config.dataparser._target = host  # in config.yml the scene is read by the host, and here as it is now

    def create_train_dataset(self) -> InputDataset:
        """The training views whose pictures are there."""
        outputs = usable(self.train_dataparser_outputs, "training")
        count = len(outputs.image_filenames)
        if self.test_mode != "inference":
            if not count:
                raise InputError("no training view has its picture: one is needed, and many are better")
            if count == 1:
                CONSOLE.print("one single training view: its colours can be learned, depth cannot", soft_wrap=True)
        self.train_dataparser_outputs = outputs
        return PosedPictures(outputs, scale_factor=self._scale)

    @property
    def _scale(self) -> float:
        """Scale at which pictures are read."""
        return self.config.camera_res_scale_factor * self.dataparser.shrink

    def create_eval_dataset(self) -> InputDataset:
        """The held-out views whose pictures are there, or the training views if there are none."""
        outputs = self.dataparser.get_dataparser_outputs(split=self.test_split)
        if len(outputs.image_filenames):
            outputs = usable(outputs, "held-out", whole=True)
        if not len(outputs.image_filenames):
            CONSOLE.print(
                "no view is held out: the training views are measured (the dataparser's --eval-mode and "
                "--train-split-fraction choose)",
                soft_wrap=True,
            )
            outputs = self.train_dataparser_outputs
        self.held_out = not set(self.train_dataparser_outputs.image_filenames).issuperset(outputs.image_filenames)
        return PosedPictures(outputs, scale_factor=self._scale)

    def setup_train(self) -> None:
        """Put all pixels and directions on the device."""
        rays, seed = self.get_train_rays_per_batch(), torch.initial_seed() % 2**31
        self.train_pixel_sampler = RayTable(self.train_dataset, self.device, num_rays_per_batch=rays, seed=seed)

    def setup_eval(self) -> None:
        """Views one by one, for the host's evaluations; rays of them only when asked for."""
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.eval_dataloader = RandIndicesEvalDataloader(self.eval_dataset, device=self.device)

    @cached_property
    def _eval_rays(self) -> RayTable:
        rays = self.config.eval_num_rays_per_batch
        return RayTable(self.eval_dataset, self.device, num_rays_per_batch=rays, seed=self.local_rank)

    def next_eval(self, step: int) -> tuple[RayBundle, dict[str, Tensor]]:
        """As next_train, of the held-out views."""
        self.eval_count += 1
        return self._eval_rays.rays(self._eval_rays.draw(step, self.eval_count))

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Tensor]]:
        """Rays [N], and {"image": colours [N, channels], "indices": camera, row and column [N, 3]}.

        Other rays at every call: the host's exporters ask for one step again and again.
        """
        self.train_count += 1
        return self.train_pixel_sampler.rays(self.train_pixel_sampler.draw(step, self.train_count))

    def get_param_groups(self) -> dict[str, list[Any]]:
        """Nothing here is learned."""
        return {}

"""Configs of the adapter for pictures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE

from loe_field.adapter.datamanager import SignalDataManagerConfig
from loe_field.adapter.pipeline import SignalPipelineConfig
from loe_field.adapter.trainer import SignalTrainerConfig
from loe_field.adapter.view import SignalView
from loe_field.image.view import PictureView
from loe_field.pictures.picture import Picture
from loe_field.signals.picture import PictureOptions, PictureSignal, default_picture
from loe_field.signals.signal import Signal
from loe_field.words import say


@dataclass
class ImageDataManagerConfig(PictureOptions, SignalDataManagerConfig):
    """The picture, and the batches of its pixels."""

    picture: Annotated[Picture | None, tyro.conf.Suppress] = None
    """A picture in memory, from Python, instead of a file's; it goes from here to the data manager."""

    def open_signal(self, device: torch.device | str, seed: int) -> PictureSignal:
        """The picture's pixels on a device.

        Raises:
            InputError: the picture or an option cannot be used.
        """
        picture, self.picture = self.picture, None
        signal = self.open(device, seed, picture)
        if signal.picture.note:
            say(signal.picture.note, CONSOLE)
        return signal

    def view_of(self, signal: Signal) -> SignalView:
        """The picture as a plane in space."""
        assert isinstance(signal, PictureSignal)
        return PictureView(signal)

    @property
    def path(self) -> Path:
        """The picture's file."""
        return self.data or default_picture()


@dataclass
class ImagePipelineConfig(SignalPipelineConfig):
    """A picture and the field that is fitted to it."""

    datamanager: DataManagerConfig = field(default_factory=ImageDataManagerConfig)
    """The picture."""


@dataclass
class ImageTrainerConfig(SignalTrainerConfig):
    """How to fit a picture."""

    pipeline: VanillaPipelineConfig = field(default_factory=ImagePipelineConfig)
    """The picture and the field."""

    def set_experiment_name(self) -> None:
        """Name the experiment after the picture."""
        if self.experiment_name is None:
            self.experiment_name = (self.pipeline.datamanager.data or default_picture()).stem

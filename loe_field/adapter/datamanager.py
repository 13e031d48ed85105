"""nerfstudio's DataManager for a signal."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import DataManager, DataManagerConfig
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor
from torch.nn import Parameter

from loe_field.adapter.view import NO_VIEW, SignalView
from loe_field.errors import InputError
from loe_field.signals.signal import Signal


@dataclass
class SignalDataManagerConfig(DataManagerConfig):
    """The signal, and the batches of its samples.

    Subclasses open it. Their option for the samples of a batch is called UNIT_per_batch after Signal.unit, "auto" being
    the rule for its size, or a baseline's authors' number.
    """

    _target: type = field(default_factory=lambda: SignalDataManager)

    def open_signal(self, device: torch.device | str, seed: int) -> Signal:
        """The signal on a device, its batches drawn by the seed.

        Raises:
            InputError: it cannot be used.
        """
        raise NotImplementedError

    def view_of(self, signal: Signal) -> SignalView | None:
        """The signal as a thing in space, for the host's viewer and renderer; None where it has no such look."""
        return None

    @property
    def path(self) -> Path:
        """The signal's file."""
        return self.data or Path()


class SignalDataset:
    """The data set that the host and its viewer ask for: the one signal; `metadata` is for the model."""

    def __init__(self, signal: Signal, view: SignalView | None) -> None:
        self.scene_box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])) if view is None else view.scene_box
        sizes: dict[str, Any] = {"channels": signal.channels, "resolution": signal.resolution}
        self.metadata = {**sizes, "view": view}
        self._view = view

    @property
    def view(self) -> SignalView:
        """The signal in space.

        Raises:
            InputError: it has no such look.
        """
        if self._view is None:
            raise InputError(NO_VIEW)
        return self._view

    @property
    def cameras(self) -> Cameras:
        """The one camera that sees the signal sample by sample."""
        return self.view.cameras

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The viewer's picture beside its camera: the signal as seen, [height, width, 3]."""
        if index != 0:
            raise IndexError(index)
        return {"image_idx": 0, "image": self.view.image}


class SignalDataManager(DataManager):
    """A signal on the device, as batches of coordinates and targets; its own test set, so all test modes are alike.

    Several processes draw the same batches, of which their pipelines take each a part.

    Raises:
        InputError: the signal or an option cannot be used.
    """

    config: SignalDataManagerConfig
    train_dataset: SignalDataset  # type: ignore[assignment]
    eval_dataset: SignalDataset  # type: ignore[assignment]

    def __init__(
        self,
        config: SignalDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **_: Any,
    ) -> None:
        self.config, self.test_mode = config, test_mode
        self.signal = config.open_signal(device, torch.initial_seed() % 2**31)
        self.train_dataset = self.eval_dataset = SignalDataset(self.signal, config.view_of(self.signal))
        super().__init__()

    def setup_train(self) -> None:
        """Nothing to do: the samples are on the device already."""

    def setup_eval(self) -> None:
        """Nothing to do: the samples are on the device already."""

    def next_train(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Coordinates [N, dim] in [0, 1), and {"image": targets [N, channels]}."""
        coords, targets = self.signal.batch(step)
        return coords, {"image": targets}

    next_eval = next_train  # type: ignore[assignment]

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Tensor]]:
        """The camera that sees the signal sample by sample, and the signal as seen."""
        return self.train_dataset.cameras[0:1], {"image": self.train_dataset.view.image}

    @property
    def fixed_indices_eval_dataloader(self) -> list[tuple[Cameras, dict[str, Tensor]]]:
        """All views to evaluate: one."""
        return [self.next_eval_image(0)]

    def get_train_rays_per_batch(self) -> int:
        """Samples per step."""
        return self.signal.samples_per_batch

    get_eval_rays_per_batch = get_train_rays_per_batch

    def get_datapath(self) -> Path:
        """The signal's file."""
        return self.config.path

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Nothing here is learned."""
        return {}

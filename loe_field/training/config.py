"""Options of every run, whatever is fitted."""

import math
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from loe_field.errors import InputError
from loe_field.files import check_name, write_whole
from loe_field.training.checkpoints import find_checkpoint, read_checkpoint
from loe_field.training.defaults import Precision, check_precision, device_of
from loe_field.training.distributed import processes_here
from loe_field.words import printable, say

_MOST_THREADS = 1024


def require_at_least(least: int, config: Any, *names: str, prefix: str = "") -> None:
    """Refuse options of a config that are below the least; those that are None pass."""
    for name in names:
        value = attrgetter(name)(config)
        if value is not None and value < least:
            raise InputError(f"--{prefix}{name.replace('_', '-')} is {value}: it must be at least {least}")


def _check_data_words(words: Sequence[str]) -> None:
    """Refuse a --data that is empty, which the host would take for the folder one works in, or given more than once."""
    options = ("--data", "--pipeline.datamanager.data")
    given = [following for word, following in pairwise(words) if word in options]
    given += [word.partition("=")[2] for word in words if word.startswith(tuple(f"{option}=" for option in options))]
    if "" in given:
        raise InputError("--data is empty: give it a path")
    if len(given) > 1:
        raise InputError(f"--data is given {len(given)} times ({', '.join(given)}): give one")


@dataclass
class LoETrainerConfig(TrainerConfig):
    """How to train: the host's options, with defaults that need no account, no browser and no GPU."""

    max_num_iterations: int | None = None  # type: ignore[assignment]
    """Steps of the whole run, those before a resume included. None: 6,000; on a CPU a picture of 4 megapixels or more
    ends by the clock instead, after two minutes and three seconds a megapixel."""
    max_train_seconds: float | None = None
    """Train for so many seconds, evaluations not counted, instead of max_num_iterations steps; the learning rates fall
    over these seconds. What comes out depends on the machine's speed. None: max_num_iterations counts."""
    target_psnr: float | None = None
    """Stop as soon as an evaluation reaches this PSNR, dB."""
    steps_per_eval_all_images: int | None = None  # type: ignore[assignment]
    """Steps between evaluations of the whole evaluation set; the run ends with one in any case. None: 250 on a CPU; on
    a GPU about 24 in a run, or as many fewer as keep them below a tenth of the time."""
    num_threads: int | None = None
    """Threads to compute with on a CPU. None: as many as torch takes, or fewer while others use the cores; timed as
    the run goes on. A fixed number makes a run repeatable to the last bit."""
    steps_per_iteration: int | None = None
    """Optimizer steps in one turn of the training loop; whatever is shown or counted stays optimizer steps. None: 1 on
    a CPU and 50 on a GPU, where the loop's own time would be felt."""
    precision: Precision | None = None
    """Type of the hidden layers' products in training, and of Muon's on a CPU under bf16; sums, phases, first and last
    layer, master weights and every evaluation stay fp32. None: tf32 on a GPU of compute capability 8.0 or more (Ampere
    on), fp32 elsewhere."""
    steps_per_save: int | None = None  # type: ignore[assignment]
    """Steps between checkpoints. None: one every 10 seconds, or as many fewer as keep them below a fiftieth of the
    time, written while the training goes on."""
    vis: Literal[
        "none", "viewer", "wandb", "tensorboard", "comet", "viewer+wandb", "viewer+tensorboard", "viewer+comet"
    ] = "none"  # type: ignore[assignment]
    """Viewer and loggers besides the console."""
    machine: MachineConfig = field(
        default_factory=lambda: MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu")
    )
    """The device: a GPU if there is one."""
    viewer: ViewerConfig = field(
        default_factory=lambda: ViewerConfig(websocket_host="127.0.0.1", quit_on_train_completion=True)
    )
    """The viewer listens on this machine only, and closes at the end of the run."""
    logging: LoggingConfig = field(
        default_factory=lambda: LoggingConfig(
            steps_per_log=100, local_writer=LocalWriterConfig(enable=False), profiler="none"
        )
    )
    """Loggers; the console has its own lines."""

    def __post_init__(self) -> None:
        """Look at --load-config while the command line is read: the host opens it before anything else is called."""
        if self.load_config is not None:
            try:
                begins = self.load_config.read_text("utf8")[:16]
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"--load-config {printable(self.load_config)} cannot be read: {error}") from None
            if begins != "!!python/object:":
                raise InputError(f"--load-config {printable(self.load_config)} is not the config.yml of a run")

    def set_timestamp(self) -> None:
        """Set it, which is the first thing that the host asks for, and refuse names that no file can have."""
        super().set_timestamp()
        paths = {"--data": self.pipeline.datamanager.data, "--output-dir": self.output_dir, "--load-dir": self.load_dir}
        paths |= {"--load-checkpoint": self.load_checkpoint, "--relative-model-dir": self.relative_model_dir}
        for option, path in paths.items():
            if path is not None:
                check_name(Path(path), option)
        check_name(self.get_base_dir(), "--experiment-name or --timestamp")

    def set_experiment_name(self) -> None:
        """Name the experiment after the data: a file's stem or a folder's name."""
        if self.experiment_name is None:
            data = self.pipeline.datamanager.data
            self.experiment_name = "default" if data is None else Path(data).stem

    def print_to_terminal(self) -> None:
        """Say where the run goes; the full configuration is written to config.yml."""
        say(f"{self.method_name} on {self.machine.device_type}: {self.get_base_dir()}", CONSOLE)

    def save_config(self) -> None:
        """Look at the options: the host calls this before anything else, also before the input. See write_config."""
        if sys.argv[1:2] == [self.method_name]:
            _check_data_words(sys.argv[2:])
        self.check()

    def write_config(self) -> None:
        """Write config.yml into the run's folder. Called by the Trainer once everything stands."""
        with write_whole(self.get_base_dir() / "config.yml") as path:
            path.write_text(yaml.dump(self), "utf8")

    def get_checkpoint_dir(self) -> Path:
        """The run's checkpoint folder; an InputError if the latest checkpoint is damaged, not the host's traceback.

        The host's evaluation asks for it without a word on which config.yml it has read: of a run that was moved or
        copied it would take the checkpoint of the place where it was trained.
        """
        folder = super().get_checkpoint_dir()
        caller = sys._getframe(1)
        if caller.f_code.co_name == "eval_setup" and "config_path" in caller.f_locals:
            beside = Path(caller.f_locals["config_path"]).parent / self.relative_model_dir
            folder = beside if beside.is_dir() else folder
        if folder.is_dir() and any(folder.glob("step-*.ckpt")):
            read_checkpoint(find_checkpoint(folder))
        return folder

    def check(self) -> None:
        """Refuse options that cannot be, before anything is built."""
        counts = ("max_num_iterations", "steps_per_eval_all_images", "steps_per_save", "steps_per_iteration")
        require_at_least(1, self, *counts, "num_threads", "logging.steps_per_log")
        if self.num_threads is not None and self.num_threads > _MOST_THREADS:
            raise InputError(f"--num-threads is {self.num_threads}: it must be at most {_MOST_THREADS}")
        if self.max_train_seconds is not None and not 0 < self.max_train_seconds < math.inf:
            raise InputError(f"--max-train-seconds is {self.max_train_seconds:g}: it must be above 0, and finite")
        if self.target_psnr is not None and math.isnan(self.target_psnr):
            raise InputError("--target-psnr is nan: give a number of dB")
        if not 0 <= self.machine.seed < 2**32:
            raise InputError(f"--machine.seed is {self.machine.seed}: it must be at least 0, and below 2^32")
        require_at_least(1, self, "machine.num_devices", "machine.num_machines")
        if self.machine.device_type not in ("cpu", "cuda"):
            raise InputError(f"--machine.device-type is {self.machine.device_type}: give cpu or cuda")
        if self.start_paused and not self.is_viewer_enabled():
            raise InputError("--start-paused waits for a click in the viewer: give --vis viewer with it")
        if self.load_dir is not None and self.load_checkpoint is not None:
            raise InputError("--load-dir and --load-checkpoint are both given: give the one to go on from")
        if self.load_step is not None and self.load_dir is None:
            raise InputError(f"--load-step {self.load_step} is a checkpoint of --load-dir: give that too")
        root, base = (Path(os.path.abspath(path)) for path in (self.output_dir, self.get_base_dir()))
        if root not in base.parents:
            names = f"--experiment-name {self.experiment_name} and --timestamp {self.timestamp}"
            raise InputError(f"{names} lead out of the folder {root}: give names without '..'")
        here = processes_here(0, 1)
        if self.is_viewer_enabled() and (here is None or here.rank == 0):  # whose viewer may listen there already
            self._check_port()
        if self.machine.device_type == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "--machine.device-type is cuda but torch finds no CUDA GPU: leave the option out, or give cpu"
            )
        if self.precision is not None:
            check_precision(self.precision, device_of(self.machine.device_type))
        devices = torch.cuda.device_count() if self.machine.device_type == "cuda" else 1
        if self.machine.num_devices > devices:
            has = f"{devices} CUDA GPU{'s' * (devices > 1)}" if self.machine.device_type == "cuda" else "one CPU"
            raise InputError(f"--machine.num-devices is {self.machine.num_devices}: there is {has}")

    def _check_port(self) -> None:
        """Refuse a port for the viewer that cannot be listened on; the viewer would fail in another thread."""
        host, port = self.viewer.websocket_host, self.viewer.websocket_port
        if port is not None and not 1 <= port <= 65535:
            raise InputError(f"--viewer.websocket-port is {port}: give 1 to 65535, or leave it out")
        try:
            socket.create_server((host, port or 0)).close()
        except OSError as error:
            reason = str(error.strerror).split(" (")[0]
            where = f"--viewer.websocket-host {host}" + (f" and --viewer.websocket-port {port}" if port else "")
            raise InputError(f"{where} cannot be listened on ({reason}): give others, or leave them out") from None

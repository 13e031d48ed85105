"""nerfstudio's Trainer with an end that evaluates, checkpoints that survive a kill, and steps counted absolutely.

What differs from the host's: `max_num_iterations` is the run's length also when it is resumed; every run ends with an
evaluation, early stop and Ctrl-C included; nothing is written before the input has been found good; scalars go to the
loggers at steps_per_log, not at every step.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.engine.optimizers import OptimizerConfig, Optimizers
from nerfstudio.engine.schedulers import SchedulerConfig
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from torch.optim import Optimizer

from loe_field.errors import InputError
from loe_field.files import check_writable
from loe_field.layers import LoEMLP
from loe_field.training.checkpoints import find_checkpoint, read_checkpoint, require_same_networks, save_checkpoint
from loe_field.training.machine import keep_freed_memory
from loe_field.training.optimizers import DecayConfig, MuonConfig
from loe_field.training.progress import TrainProgress
from loe_field.training.record import RunRecord
from loe_field.training.results import environment
from loe_field.training.threads import ThreadTuner


@dataclass
class LoETrainerConfig(TrainerConfig):
    """How to train: the host's options, with defaults that need no account, no browser and no GPU."""

    _target: type = field(default_factory=lambda: LoETrainer)
    max_num_iterations: int = 6000
    """Steps of the whole run, those before a resume included."""
    max_train_seconds: float | None = None
    """Train for so many seconds, evaluations not counted, instead of max_num_iterations steps; the learning rates fall
    over these seconds. What comes out depends on the machine's speed. None: max_num_iterations counts."""
    target_psnr: float | None = None
    """Stop as soon as an evaluation reaches this PSNR, dB."""
    steps_per_eval_all_images: int = 250
    """Steps between evaluations of the whole evaluation set; the run ends with one in any case."""
    num_threads: int | None = None
    """Threads to compute with on a CPU. None: as many as torch takes, or fewer while others use the cores; timed as
    the run goes on. A fixed number makes a run repeatable to the last bit."""
    steps_per_iteration: int | None = None
    """Optimizer steps in one turn of the training loop; whatever is shown or counted stays optimizer steps. None: 1 on
    a CPU and 50 on a GPU, where the loop's own time would be felt."""
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    """What the hidden layers multiply while training, and on a CPU Muon too under bf16; sums, phases, first and last
    layer, master weights and every evaluation stay fp32. None: tf32 on a GPU, fp32 on a CPU."""
    steps_per_save: int = 100
    """Steps between checkpoints."""
    vis: Literal[
        "none", "viewer", "wandb", "tensorboard", "comet", "viewer+wandb", "viewer+tensorboard", "viewer+comet"
    ] = "none"  # type: ignore[assignment]
    """Where to watch the run besides the console."""
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

    def set_experiment_name(self) -> None:
        """Name the experiment after the data: a file's stem or a folder's name."""
        if self.experiment_name is None:
            data = self.pipeline.datamanager.data
            self.experiment_name = "default" if data is None else Path(data).stem

    def print_to_terminal(self) -> None:
        """Say where the run goes; the full configuration is written to config.yml."""
        CONSOLE.print(f"{self.method_name} on {self.machine.device_type}: {self.get_base_dir()}", soft_wrap=True)

    def save_config(self) -> None:
        """Nothing yet: the host calls this before the input has been looked at. See write_config."""

    def write_config(self) -> None:
        """Write config.yml into the run's folder. Called by the Trainer once everything stands."""
        super().save_config()

    def get_checkpoint_dir(self) -> Path:
        """The run's checkpoint folder; the latest checkpoint in it, if any, is one that loads.

        Raises:
            InputError: the latest checkpoint is damaged. The host's tools would end in a traceback.
        """
        folder = super().get_checkpoint_dir()
        if folder.is_dir() and any(folder.glob("step-*.ckpt")):
            read_checkpoint(find_checkpoint(folder))
        return folder


class LoETrainer(Trainer):
    """Trains a pipeline; see the module's first lines for what it does its own way.

    Raises:
        InputError: an option, the device, the output folder or a checkpoint cannot be used.
    """

    config: LoETrainerConfig
    unit = "rays"
    """What the pipeline's batches count."""

    def __init__(self, config: LoETrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        _check_options(config)
        config.output_dir = config.output_dir.expanduser().resolve()
        datamanager = config.pipeline.datamanager
        if datamanager.data is not None:
            datamanager.data = Path(datamanager.data).expanduser().resolve()
        check_writable(config.output_dir, "--output-dir")
        super().__init__(config, local_rank, world_size)
        # The host's autocast, without its loss scaling: bf16 has the range of fp32.
        self.mixed_precision = self.mixed_precision or self.precision == "bf16"
        self.record = RunRecord()
        self._evaluated_at: int | None = None
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self._most_threads = torch.get_num_threads()
        self._threads = nullcontext
        if self.device == "cpu":
            keep_freed_memory()
            if config.num_threads is None:
                self._threads = ThreadTuner(self._most_threads).step

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build everything, load the checkpoint if one is wanted, then write config.yml."""
        self.config.optimizers = {
            name: {
                **group,
                "optimizer": self._with_precision(group["optimizer"]),
                "scheduler": self._stretched(group["scheduler"]),
            }
            for name, group in self.config.optimizers.items()
        }
        super().setup(test_mode)
        if self.local_rank == 0:
            self.config.write_config()

    def _with_precision(self, optimizer: OptimizerConfig) -> OptimizerConfig:
        """The config, with the run's precision where Muon was not given one."""
        if isinstance(optimizer, MuonConfig) and optimizer.precision is None:
            return replace(optimizer, precision="bf16" if self.precision == "bf16" else "fp32")
        return optimizer

    def _stretched(self, scheduler: SchedulerConfig | None) -> SchedulerConfig | None:
        """The scheduler, ending with the run where it was not told when to end."""
        if isinstance(scheduler, DecayConfig) and scheduler.max_steps is None:
            return replace(scheduler, max_steps=self.config.max_num_iterations)
        return scheduler

    def setup_optimizers(self) -> Optimizers:
        """The host's optimizers, with the checkpoint loaded if one is wanted.

        The host loads it later, when its viewer has already made files.
        """
        try:
            optimizers = super().setup_optimizers()
        except ValueError as error:
            raise InputError(f"{error} (an option of --optimizers)") from None
        self._resume(optimizers)
        if self.config.is_viewer_enabled():
            self.base_dir.mkdir(parents=True, exist_ok=True)  # the host's viewer makes only the last folder
        return optimizers

    def train(self) -> None:
        """Train, evaluate, write the results; stop early at the target or when asked to."""
        self._init_viewer_state()
        self.stop_training = False
        total = self.config.max_num_iterations
        per_step = self.pipeline.datamanager.get_train_rays_per_batch()
        num_seconds = self.config.max_train_seconds
        self.step = self._start_step - 1
        if self.part_done >= 1:
            done, given = (
                (f"{self._start_step} steps", f"{total}")
                if num_seconds is None
                else (f"{self.record.seconds:.0f} s", f"{num_seconds:g}")
            )
            CONSOLE.print(f"the checkpoint has {done} already, of {given}: evaluating only")
        else:
            self.prepare()
        self.record.start()
        with (
            _graceful_stop(self) as stopped,
            TrainProgress(
                self._start_step,
                total if num_seconds is None else None,
                num_seconds=num_seconds,
                seconds_before=self.record.seconds_before,
                per_step=per_step,
                unit=self.unit,
            ) as progress,
        ):
            step = self._start_step
            while self.part_done < 1:
                while self.training_state == "paused" and not self.stop_training:
                    time.sleep(0.05)
                if self.stop_training:
                    break
                count = self._steps_until_due(step)
                with self.train_lock, self._threads():
                    self._iterate(step, count)
                step += count
                self._update_viewer_state(self.step)
                self._after_step(self.step, progress)
            torch.set_num_threads(self._most_threads)
            self._finish(progress)
        if stopped:
            raise SystemExit(128 + stopped[0])
        if not self.config.viewer.quit_on_train_completion:
            self._train_complete_viewer()

    def prepare(self) -> None:
        """What is to be done before the clock starts. Subclasses compile what is compiled at its first use."""

    @property
    def part_done(self) -> float:
        """How much of the run is done, by steps or by seconds; 1 at its end."""
        if self.config.max_train_seconds is not None:
            return min(1.0, self.record.seconds / self.config.max_train_seconds)
        return min(1.0, (self.step + 1) / self.config.max_num_iterations)

    def _steps_until_due(self, step: int) -> int:
        """Optimizer steps of the next turn: as many as wanted, but not past anything that is due."""
        wanted = self.config.steps_per_iteration or (50 if self.device.startswith("cuda") else 1)
        periods = [self.steps_per_evaluation, self.config.steps_per_save, self.config.logging.steps_per_log]
        if self.config.max_train_seconds is None:
            periods.append(self.config.max_num_iterations)
        return min(wanted, *(period - step % period for period in periods))

    def _set_schedules(self) -> None:
        """Where seconds count, put the schedules where the clock is."""
        if self.config.max_train_seconds is not None:
            if self.device.startswith("cuda"):
                torch.cuda.synchronize()  # the clock is the device's, not the queue's
            for scheduler in self.optimizers.schedulers.values():
                scheduler.last_epoch = int(self.part_done * self.config.max_num_iterations)

    def _iterate(self, first: int, count: int) -> None:
        """Optimizer steps first .. first + count - 1, with the callbacks around them."""
        self.pipeline.train()
        self._set_schedules()
        for callback in self.callbacks:
            callback.run_callback_at_location(first, location=TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        with training_precision(self.precision, self.device):
            loss, loss_dict, metrics_dict = self.train_steps(first, count)
        self.step = step = first + count - 1
        for callback in self.callbacks:
            callback.run_callback_at_location(step, location=TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        if (step + 1) % self.config.logging.steps_per_log == 0 and writer.EVENT_WRITERS:
            writer.put_scalar(name="Train Loss", scalar=loss.detach(), step=step)
            writer.put_dict(
                name="Train Loss Dict", scalar_dict={k: v.detach() for k, v in loss_dict.items()}, step=step
            )
            writer.put_dict(name="Train Metrics Dict", scalar_dict=metrics_dict, step=step)
            writer.write_out_storage()
        else:
            writer.EVENT_STORAGE.clear()  # the host notes the learning rates at every step

    def train_steps(
        self, first: int, count: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Take optimizer steps first .. first + count - 1; returns loss, losses and metrics of the last."""
        for step in range(first, first + count - 1):
            self.train_iteration(step)
        return self.train_iteration(first + count - 1)

    @property
    def precision(self) -> Literal["fp32", "tf32", "bf16"]:
        """What the hidden layers multiply while training."""
        return self.config.precision or ("tf32" if self.device.startswith("cuda") else "fp32")

    def _after_step(self, step: int, progress: TrainProgress) -> None:
        """Evaluate, show and save as often as the config says; the end of the run has its own."""
        done = step + 1
        last = self.part_done >= 1
        if done % self.steps_per_evaluation == 0 and not last:
            self._evaluate(progress)
            target = self.config.target_psnr
            if target is not None and self.record.curve[-1].psnr >= target:
                CONSOLE.print(
                    f"PSNR {self.record.curve[-1].psnr:.2f} dB has reached --target-psnr {target:g}: stopping"
                )
                self.stop_training = True
        psnr = self.record.curve[-1].psnr if self.record.curve else None
        progress.update(done, self.record.seconds_here, psnr)
        if done % self.config.steps_per_save == 0 and not last:
            self.save_checkpoint(step)

    def _evaluate(self, progress: TrainProgress) -> None:
        """Measure the PSNR and note it."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        with self.train_lock, self.record.clock_stopped():
            self.pipeline.eval()
            psnr = self.evaluate()
        point = self.record.add(self.step + 1, psnr)
        self._evaluated_at = self.step
        if self.local_rank == 0:
            progress.evaluated(point, self.record.psnr_best, self.record.seconds_here)
        if writer.EVENT_WRITERS:
            writer.put_scalar(name="Eval PSNR", scalar=point.psnr, step=self.step)
            writer.write_out_storage()

    @property
    def steps_per_evaluation(self) -> int:
        """Steps between evaluations."""
        return self.config.steps_per_eval_all_images

    def evaluate(self) -> float:
        """PSNR in dB over the evaluation set; subclasses may know a cheaper way."""
        return self.pipeline.get_average_eval_image_metrics(step=self.step)["psnr"]

    def _finish(self, progress: TrainProgress) -> None:
        """The end of every run: an evaluation, a checkpoint, and whatever is to be left behind."""
        self.training_state = "completed"
        if self.local_rank != 0:
            return
        if self._evaluated_at != self.step:
            self._evaluate(progress)
        if self.step >= 0:
            self.save_checkpoint(self.step)
        for callback in self.callbacks:
            callback.run_callback_at_location(step=self.step, location=TrainingCallbackLocation.AFTER_TRAIN)
        self.write_results()

    def write_results(self) -> None:
        """Leave results in the run's folder and say where. Subclasses have more to leave."""
        self.say_where({})

    def run_figures(self) -> dict[str, Any]:
        """What metrics.json says of every run: its length, its target, its seed, and where it was made."""
        return {
            "num_steps": self.step + 1,
            "train_seconds": self.record.curve[-1].seconds,
            "target_psnr": self.config.target_psnr,
            "seconds_to_target": self.record.seconds_to(self.config.target_psnr),
            "seed": self.config.machine.seed,
            "precision": self.precision,
            **environment(self.device),
        }

    def say_where(self, results: dict[str, Path]) -> None:
        """Print where config, checkpoints and results lie."""
        for name, path in {
            "config": self.base_dir / "config.yml",
            "checkpoints": self.checkpoint_dir,
            **results,
        }.items():
            CONSOLE.print(f"  {name:<14} {path}", soft_wrap=True, highlight=False)

    def _load_checkpoint(self) -> None:
        """Done by setup_optimizers."""

    def _resume(self, optimizers: Optimizers) -> None:
        """Load --load-checkpoint, or the latest (or --load-step) of --load-dir, with the run's record."""
        config = self.config
        if config.load_checkpoint is not None:
            path = config.load_checkpoint.expanduser()
        elif config.load_dir is not None:
            path = find_checkpoint(config.load_dir.expanduser(), config.load_step)
        else:
            return
        state = read_checkpoint(path)
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        require_same_networks(state.get("networks", []), self.network_options())
        for name, saved in state["optimizers"].items():
            if name in optimizers.optimizers:
                _keep_ways(saved, optimizers.optimizers[name])
        try:
            optimizers.load_optimizers(state["optimizers"])
            if config.load_scheduler:
                optimizers.load_schedulers(state["schedulers"])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path} was trained with other optimizers ({error}): give the same --optimizers"
            ) from None
        self.grad_scaler.load_state_dict(state["scalers"])
        if "record" in state:
            self.record.load_state_dict(state["record"])
        self._start_step = state["step"] + 1
        CONSOLE.print(f"going on after step {self._start_step} of {path}", soft_wrap=True)

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write a checkpoint that torch.load(weights_only=True) reads, whole or not at all."""
        pipeline = getattr(self.pipeline, "module", self.pipeline)
        save_checkpoint(
            self.checkpoint_dir,
            step,
            {
                "step": step,
                "pipeline": pipeline.state_dict(),
                "optimizers": {name: o.state_dict() for name, o in self.optimizers.optimizers.items()},
                "schedulers": {name: s.state_dict() for name, s in self.optimizers.schedulers.items()},
                "scalers": self.grad_scaler.state_dict(),
                "record": self.record.state_dict(),
                "networks": self.network_options(),
                **self.more_state(),
            },
            only_latest=self.config.save_only_latest_checkpoint,
        )

    def network_options(self) -> list[dict[str, Any]]:
        """What a checkpoint says of its networks besides their weights; the same for one that goes on with it."""
        return [network.options for network in self.pipeline.modules() if isinstance(network, LoEMLP)]

    def more_state(self) -> dict[str, Any]:
        """What else a checkpoint holds: tensors, plain numbers and text. Subclasses may have something."""
        return {}

    def _check_viewer_warnings(self) -> None:
        """The host warns that nothing is evaluated without a logger; here everything is."""


def _keep_ways(saved: dict[str, Any], optimizer: Optimizer) -> None:
    """Put this device's and this run's ways of computing into a saved state: they may have been others."""
    for group, mine in zip(saved["param_groups"], optimizer.param_groups):
        group |= {name: mine[name] for name in ("fused", "capturable", "foreach", "dtype") if name in mine}


@contextmanager
def training_precision(precision: Literal["fp32", "tf32", "bf16"], device: str) -> Iterator[None]:
    """Set what matrix products multiply for as long as this lasts; bf16 needs autocast within."""
    kind = device.split(":")[0]
    before = torch.backends.cuda.matmul.allow_tf32, torch.get_autocast_dtype(kind)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if precision == "bf16":
        torch.set_autocast_dtype(kind, torch.bfloat16)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before[0]
        torch.set_autocast_dtype(kind, before[1])


@contextmanager
def _graceful_stop(trainer: LoETrainer) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the run after the step that is under way; a second one ends it at once.

    Only the main thread of a process gets signals: in another one nothing is done about them.

    Yields:
        a list that holds the signal's number once it came.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if received:
            raise SystemExit(128 + number)
        received.append(number)
        trainer.stop_training = True
        CONSOLE.print("stopping after this step, then evaluating and saving; once more quits at once")

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _check_options(config: LoETrainerConfig) -> None:
    """Refuse counts below 1 and a device that is not there."""
    counts = ("max_num_iterations", "steps_per_eval_all_images", "steps_per_save", "steps_per_iteration", "num_threads")
    for name in counts:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}: it must be at least 1")
    if config.max_train_seconds is not None and not 0 < config.max_train_seconds < math.inf:
        raise InputError(f"--max-train-seconds is {config.max_train_seconds:g}: it must be above 0, and finite")
    if config.logging.steps_per_log < 1:
        raise InputError(f"--logging.steps-per-log is {config.logging.steps_per_log}: it must be at least 1")
    if config.start_paused and not config.is_viewer_enabled():
        raise InputError("--start-paused waits for a click in the viewer: give --vis viewer with it")
    if config.precision == "tf32" and config.machine.device_type != "cuda":
        raise InputError("--precision tf32 is an NVIDIA GPU's: give fp32 or bf16 on a CPU")
    if config.machine.device_type == "cuda" and not torch.cuda.is_available():
        raise InputError("--machine.device-type is cuda but torch finds no CUDA GPU: leave the option out, or give cpu")

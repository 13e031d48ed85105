"""nerfstudio's Trainer with an end that evaluates, checkpoints that survive a kill, and steps counted absolutely.

What differs from the host's: `max_num_iterations` is the run's length also when it is resumed; every run ends with an
evaluation, early stop and Ctrl-C included; nothing is written before the input has been found good; scalars go to the
loggers at steps_per_log, not at every step.
"""

import copy
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image

from loe_field.errors import InputError, shortage
from loe_field.files import check_writable, write_each
from loe_field.network.kernels import cpu
from loe_field.network.optim import Muon
from loe_field.stopping import stop_signals
from loe_field.training.checkpoints import checkpoint_path, checkpoint_steps, packed, write_checkpoint
from loe_field.training.config import LoETrainerConfig
from loe_field.training.console import host_lines_as_they_are
from loe_field.training.defaults import Precision, defaults_for, device_of, remark
from loe_field.training.distributed import Processes, processes_here
from loe_field.training.folder import RunFolder
from loe_field.training.machine import keep_freed_memory
from loe_field.training.optimizers import DecayConfig, MuonConfig
from loe_field.training.pipeline import LoEPipeline
from loe_field.training.progress import TrainProgress
from loe_field.training.record import RunRecord
from loe_field.training.results import environment
from loe_field.training.resume import RunState
from loe_field.training.step import TrainStep
from loe_field.training.threads import ThreadTuner
from loe_field.words import say

_SECONDS_PER_SAVE, _PART_FOR_SAVES = 10.0, 0.02
"""Checkpoints by time: so many seconds apart at least, and so far that they take no more than this part of the time."""

_UNTIL_TOLD = 1.0
"""Seconds until it is known whether a signal came because another process was lost."""

_STEPS = 6000
"""Of a run whose config says neither steps nor seconds."""

_EVALUATIONS, _PART_FOR_EVALUATIONS = 24, 0.1
"""Evaluations by time: so many in a run at most, and so few that they take no more than this part of the time."""


class LoETrainer(Trainer):
    """Trains a pipeline; see the module's first lines for what it does its own way.

    The config is copied, for it may be a registered one; options that were left open become numbers in the copy.
    Of several processes (see distributed.py) this is one where the host says so by world_size, or `join` has been
    called.
    Without leaves_files nothing is written: no config.yml, no checkpoints, no results. An option, a device, an output
    folder or a checkpoint that cannot be used is an InputError.
    """

    config: LoETrainerConfig
    pipeline: LoEPipeline
    unit = "rays"
    """The word for a batch's members."""
    measures_samples = False
    """Whether evaluations during a run are of samples; the last one is of all."""
    first_preview = math.inf
    """Seconds of training until preview.png is written first; again after twice the seconds of the time before."""

    def __init__(
        self, config: LoETrainerConfig, local_rank: int = 0, world_size: int = 1, *, leaves_files: bool = True
    ) -> None:
        config = copy.deepcopy(config)
        self.processes = processes_here(local_rank, world_size)
        if self.processes is not None:
            local_rank, world_size = self.processes.local_rank, self.processes.size
            CONSOLE.quiet = CONSOLE.quiet or self.processes.rank > 0
            if self.processes.rank > 0:  # process 0 shows, and pauses for all
                config.vis, config.start_paused = "none", False
        config.check()
        config.output_dir = config.output_dir.expanduser().resolve()
        if (data := config.pipeline.datamanager.data) is not None:
            config.pipeline.datamanager.data = Path(data).expanduser().resolve()
        if leaves_files and (self.processes is None or self.processes.rank == 0):
            check_writable(config.output_dir, "--output-dir")
        # The host says where checkpoints go before it has seen the input.
        with CONSOLE.capture(), host_lines_as_they_are():
            super().__init__(config, local_rank, world_size)
        if self.processes is not None:
            self.processes.take(self.device)
            self.local_rank = self.processes.rank  # the host asks it who shows and writes, and that is one of all
        device = device_of(self.device)
        self.defaults = defaults_for(device)
        config.steps_per_iteration = config.steps_per_iteration or self.defaults.steps_per_iteration
        self._timed_by_size = config.max_num_iterations is None and config.max_train_seconds is None
        config.max_num_iterations = self.num_steps
        if config.precision is None:
            config.precision = self.defaults.precision
            if remark(device) is not None:
                say(remark(device), CONSOLE)
        self.leaves_files = leaves_files
        self._folder: RunFolder | None = None
        self._problems: list[str] = []
        # The host's autocast, without its loss scaling: bf16 has the range of fp32.
        self.mixed_precision = self.mixed_precision or self.precision == "bf16"
        self.record = RunRecord()
        self._evaluated_at: int | None = None
        self._evaluated_whole = False
        self._previews = 0
        self._asked = 0
        self._evaluating_took = 0.0
        self._writing: Future[float] | None = None
        self._saving_took = 0.0
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self._most_threads = torch.get_num_threads()
        self._threads = nullcontext
        if self.device == "cpu":
            keep_freed_memory()
            if config.num_threads is None and self.processes is None:
                self._threads = ThreadTuner(self._most_threads).step

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run where no clock ends it; the schedules' steps where one does."""
        return self.config.max_num_iterations or _STEPS

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build everything, load the checkpoint if one is wanted, then write config.yml."""
        try:
            if self.processes is None:
                self._setup(test_mode)
            else:
                self._setup_together(test_mode, self.processes)
        except BaseException as error:
            if self._folder is not None:
                self._folder.discard()
            problem = shortage(error)
            if problem is None:
                raise
            raise InputError(problem) from None

    def _setup_together(self, test_mode: Literal["test", "val", "inference"], processes: Processes) -> None:
        """Set up as every other process does, from one seed, and go on once all can."""
        torch.manual_seed(self.config.machine.seed)
        problem = None
        try:
            self._setup(test_mode)
        except (InputError, OSError, MemoryError, RuntimeError) as error:
            problem = str(error) if isinstance(error, InputError) else shortage(error)
            if problem is None:
                raise
        processes.agree(problem)
        processes.connect(self.device)
        if self.device == "cpu" and self.config.num_threads is None:
            self._most_threads = processes.threads()
            torch.set_num_threads(self._most_threads)
        folders = processes.told([str(self.base_dir), str(self.checkpoint_dir)])
        self.base_dir, self.checkpoint_dir = map(Path, folders)
        if len(steps := set(processes.gathered(self._start_step))) > 1:
            found = ", ".join(map(str, sorted(steps)))
            raise processes.common_error(
                f"the processes find checkpoints of different steps ({found}): let all see one"
            )
        processes.equalize([t for t in (*self.pipeline.parameters(), *self.pipeline.buffers()) if t.numel()])
        if processes.rank > 0:  # whose random numbers besides the batches' are its own
            numbers = [self.config.machine.seed, processes.rank, self._start_step]
            torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        processes.way_on, processes.on_stop = self._way_on, self._stop_for_another
        for optimizer in self.optimizers.optimizers.values():
            if isinstance(optimizer, Muon):
                optimizer.spread = processes.spread
        count, unit = self.pipeline.datamanager.get_train_rays_per_batch(), self.unit
        share = f"{count:,} {unit} a step, {-(-count // processes.size):,} in each"
        say(f"{processes.size} processes ({processes.backend}): {share}", CONSOLE)

    def _stop_for_another(self, number: int) -> None:
        """End the run after the turn that is under way, because another process got a signal."""
        self._asked, self.stop_training = number, True

    def _setup(self, test_mode: Literal["test", "val", "inference"]) -> None:
        config = self.config
        config.optimizers = {
            name: {part: self._filled(value) for part, value in group.items()}
            for name, group in config.optimizers.items()
        }
        super().setup(test_mode)
        config.pipeline = self.pipeline.config
        if self._timed_by_size:
            config.max_train_seconds = self.usual_seconds
        self.train_step = TrainStep(
            self.pipeline,
            self.optimizers.optimizers,
            self.optimizers.schedulers,
            device=self.device,
            autocast=self.mixed_precision,
            scaler=self.grad_scaler,
            accumulate=self.gradient_accumulation_steps,
            max_norm={name: group["optimizer"].max_norm for name, group in config.optimizers.items()},
            capture=self.processes is None and not config.log_gradients,
            sum_gradients=self.processes and self.processes.sum_gradients,
            say=partial(say, to=CONSOLE),
        )
        if self._folder is not None:
            config.write_config()

    def claim_folder(self) -> RunFolder | None:
        """Make the run's folder and keep other runs out of it; done once, before the first file is written.

        Returns:
            The folder; None where no files are left.

        Raises:
            InputError: see RunFolder.
        """
        if self.leaves_files and self.local_rank == 0 and self._folder is None:
            self._folder = RunFolder(self.config)
            self.base_dir = self._folder.path
            self.checkpoint_dir = self.base_dir / self.config.relative_model_dir
        return self._folder

    @contextmanager
    def _shortage_told(self) -> Iterator[None]:
        """Let a lack of memory, disk or rights be one line, which says from where the run can go on."""
        try:
            yield
        except (OSError, MemoryError, RuntimeError) as error:
            problem = self._problem(error)
            if problem is None:
                raise
            raise InputError(f"{problem}. {self._way_on()}") from None

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Let what cannot be written end the run soon and in an orderly way, with the other files written."""
        try:
            yield
        except (InputError, OSError, MemoryError, RuntimeError) as error:
            problem = self._problem(error)
            if problem is None:
                raise
            self._problems.append(problem)
            self.stop_training = True

    def _problem(self, error: Exception) -> str | None:
        """What is to be told of an error; None if it is a fault of the program."""
        problem = str(error) if isinstance(error, InputError) else shortage(error)
        if isinstance(error, OSError) and error.filename is None:
            problem = f"the console, or a file in {self.base_dir}, cannot be written: {problem}"
        return problem

    def _way_on(self) -> str:
        """The last checkpoint that is good, and how to go on from it."""
        written = self.local_rank > 0 or self._folder is not None
        steps = checkpoint_steps(self.checkpoint_dir) if written and self.checkpoint_dir.is_dir() else []
        if steps:
            path = checkpoint_path(self.checkpoint_dir, steps[-1])
            return f"The last good checkpoint is {path}: go on with --load-dir {self.checkpoint_dir}"
        if self._start_step:
            source = "load_checkpoint" if self.config.load_dir is None else "load_dir"
            return f"No new checkpoint was written: --{source.replace('_', '-')} {getattr(self.config, source)} is good"
        return "No checkpoint was written"

    def _filled(self, config: Any) -> Any:
        """An optimizer's or scheduler's config, with the run's precision or end where it was not given one."""
        if isinstance(config, MuonConfig) and config.precision is None:
            return replace(config, precision="bf16" if self.precision == "bf16" else "fp32")
        if isinstance(config, DecayConfig) and config.max_steps is None:
            return replace(config, max_steps=self.num_steps)
        return config

    def setup_optimizers(self) -> Optimizers:
        """The host's optimizers, with the checkpoint loaded: the host does it after its viewer has made files."""
        _ = self.computed_by  # refuses before anything is written
        if self.precision == "bf16" and any(network.recipe is not None for network in self.pipeline.networks):
            raise InputError("--precision bf16 is for levels of experts: baselines are trained in fp32, leave it out")
        try:
            optimizers = super().setup_optimizers()
        except ValueError as error:
            raise InputError(f"{error} (an option of --optimizers)") from None
        self._state = RunState(self.pipeline, optimizers, self.grad_scaler, self.record)
        self._start_step = self._state.resume(self.config, self.check_state)
        self.claim_folder()
        if self.config.is_viewer_enabled():
            self.base_dir.mkdir(parents=True, exist_ok=True)  # the host's viewer makes only the last folder
        return optimizers

    def check_state(self, state: dict[str, Any], path: Path) -> None:
        """Refuse the checkpoint of a path, with an InputError, that is of something else. Subclasses may look."""

    @property
    def computed_by(self) -> str:
        """The implementation and precision of training, for people; nothing for the host's own networks."""
        if not self.pipeline.networks:
            return ""
        with torch.autocast(self.device.split(":")[0], enabled=self.mixed_precision):
            used = f", implementation {self.pipeline.implementations()[0]}, {self.precision}"
            remark = self.pipeline.networks[0].obstacle
        if self.pipeline.implementations()[0] == "cpu":
            remark = cpu.remark()
        return used if remark is None else f"{used} ({remark})"

    def train(self) -> Any:
        """Train, evaluate, write the results; stop early at the target or when asked to. Returns `result`.

        Raises:
            InputError: memory ran out, or something cannot be written; all else is.
        """
        failed = True
        try:
            with self._shortage_told():
                result = self._train()
            if self._problems:
                raise InputError(f"{self._problems[0]}. {self._way_on()}")
            failed = False
        finally:
            if self._folder is not None:
                self._folder.release()
            if self.processes is not None:
                self.processes.leave(failed=failed)
        return result

    def _train(self) -> Any:
        self._init_viewer_state()
        self.stop_training = False
        total, num_seconds = self.num_steps, self.config.max_train_seconds
        per_step = self.pipeline.datamanager.get_train_rays_per_batch()
        step = self._start_step
        self.step = step - 1
        if self.part_done >= 1:
            part = f"{step} steps already, of {total}"
            if num_seconds is not None:
                part = f"{self.record.seconds:.0f} s already, of {num_seconds:g}"
            say(f"the checkpoint has {part}: evaluating only", CONSOLE)
        else:
            self.prepare()
        if self.local_rank == 0:
            self._state.go_on()
        self.record.start()
        self._progress = TrainProgress(self.record, step, total, num_seconds, per_step=per_step, unit=self.unit)
        self._saved_at = time.monotonic()
        with stop_signals(self._stop_soon) as stopped:
            with ThreadPoolExecutor(1) as self._writer, self._progress:
                while count := self._next_turn(step, stopped):
                    with self.train_lock, self._threads():
                        self._iterate(step, count)
                    step += count
                    self._update_viewer_state(self.step)
                    self._after_step()
                torch.set_num_threads(self._most_threads)
                result = self._finish()
            number = stopped[0] if stopped else self._asked
            status = 128 + number if number else 0
            if self.processes is not None:  # the others wait here for process 0, whatever signal comes
                status = self.processes.told(1 if self._problems else status)
                self.processes.leave(failed=False)
        if status and not self._problems:  # which are told otherwise
            raise SystemExit(status)
        if not self.config.viewer.quit_on_train_completion and not self._problems:
            self._train_complete_viewer()
        return result

    def _stop_soon(self, received: list[int]) -> None:
        """Ctrl-C and SIGTERM end the run after the step that is under way; a second one ends it at once.

        Of several processes, those who started them pass on in their own words what the terminal has told all.
        """
        if len(received) > 1 and (self.processes is None or received[-1] in received[:-1]):
            raise SystemExit(128 + received[-1])
        if self.local_rank > 0 and self.processes is not None:
            self.processes.ask_to_stop(received[0])
            return
        self.stop_training = True
        if self.processes is None:
            self._say_stopping()

    @staticmethod
    def _say_stopping() -> None:
        CONSOLE.print("stopping after this step, then evaluating and saving; once more quits at once")

    def _next_turn(self, step: int, stopped: list[int]) -> int:
        """Optimizer steps of the next turn, 0 at the end of the run; process 0 decides for all."""
        if self.config.max_train_seconds is not None and self.device.startswith("cuda"):
            torch.cuda.synchronize()  # the clock is the device's, not the queue's
        while self.training_state == "paused" and not self.stop_training:
            time.sleep(0.05)
        processes = self.processes
        if (stopped or self._asked) and processes is not None and self.local_rank == 0:
            time.sleep(_UNTIL_TOLD)  # torchrun ends all others as soon as one is lost, which the watch tells of then
            self._say_stopping()
            if self.leaves_files and self.step >= self._start_step:
                with self.going_on():
                    self.save_checkpoint(self.step)  # torchrun and Slurm give 30 s: an evaluation may take longer
        self._turn_starts_at = self.part_done
        count = 0 if self.stop_training or self._turn_starts_at >= 1 else self._steps_until_due(step)
        if processes is None:
            return count
        to_compare = self._evaluated_at == self.step or count == 0
        told = processes.told_numbers(count, self._turn_starts_at, to_compare)
        if told[2]:
            same = processes.require_equal(self.pipeline.parameters(), f"after step {self.step + 1}")
            if not told[0]:
                say(f"the weights of all {processes.size} processes are the same to the bit ({same})", CONSOLE)
        self._turn_starts_at = told[1]
        return int(told[0])

    def prepare(self) -> None:
        """Compile the kernels of training and evaluation before the clock starts."""
        if not self.device.startswith("cuda"):
            return  # those of a CPU are compiled as soon as an implementation is chosen
        step = self._start_step
        self.pipeline.train()
        self._call_back(TrainingCallbackLocation.BEFORE_TRAIN_ITERATION, step)
        with training_precision(self.precision, self.device):
            self.train_step.prepare(step)
        self.pipeline.eval()
        with torch.no_grad():
            self.pipeline.losses(*self.pipeline.draw(step))

    @property
    def part_done(self) -> float:
        """How much of the run is done, by steps or by seconds; 1 at its end."""
        return self._part_of(self.step + 1, self.record.seconds)

    def _part_of(self, steps: int, seconds: float) -> float:
        """So many steps, which took so many seconds, as a part of the run, 0 to 1."""
        if self.config.max_train_seconds is not None:
            return min(1.0, seconds / self.config.max_train_seconds)
        return min(1.0, steps / self.num_steps)

    def _steps_until_due(self, step: int) -> int:
        """Optimizer steps of the next turn: as many as wanted, but not past anything that is due."""
        periods = [self.steps_per_evaluation, self.config.steps_per_save, self.config.logging.steps_per_log]
        if self.config.max_train_seconds is None:
            periods.append(self.num_steps)
        left = [period - step % period for period in periods if period is not None]
        return min(self.config.steps_per_iteration or 1, *left)

    def _set_schedules(self) -> None:
        """Put the schedules to the clock's part of the run, if seconds count."""
        if self.config.max_train_seconds is not None:
            for scheduler in self.optimizers.schedulers.values():
                scheduler.last_epoch = int(self._turn_starts_at * self.num_steps)

    def _call_back(self, location: TrainingCallbackLocation, step: int) -> None:
        for callback in self.callbacks:
            callback.run_callback_at_location(step, location)

    def _iterate(self, first: int, count: int) -> None:
        """Take optimizer steps first .. first + count - 1, each with the host's callbacks before and after it."""
        self.pipeline.train()
        self._set_schedules()
        where = TrainingCallbackLocation
        losses, metrics = {}, {}
        with training_precision(self.precision, self.device):
            for self.step in range(first, first + count):
                self._call_back(where.BEFORE_TRAIN_ITERATION, self.step)
                losses, metrics = self.train_step(self.step)
                self._call_back(where.AFTER_TRAIN_ITERATION, self.step)
        if writer.EVENT_WRITERS and (self.step + 1) % self.config.logging.steps_per_log == 0:
            self._log(losses, metrics)

    def _log(self, losses: dict[str, torch.Tensor], metrics: dict[str, torch.Tensor]) -> None:
        """Hand the figures of the last step to the host's loggers."""
        step = self.step
        for name, scheduler in self.optimizers.schedulers.items():
            writer.put_scalar(name=f"learning_rate/{name}", scalar=scheduler.get_last_lr()[0], step=step)
        if self.config.log_gradients:
            gradients = {n: p.grad.norm() for n, p in self.pipeline.model.named_parameters() if p.grad is not None}
            metrics = metrics | {f"Gradients/{name}": norm for name, norm in gradients.items()}
            metrics["Gradients/Total"] = sum(gradients.values(), torch.zeros((), device=self.device))
        writer.put_scalar(name="Train Loss", scalar=reduce(torch.add, losses.values()), step=step)
        writer.put_dict(name="Train Loss Dict", scalar_dict=losses, step=step)
        writer.put_dict(name="Train Metrics Dict", scalar_dict=metrics, step=step)
        with self.going_on():
            writer.write_out_storage()

    @property
    def precision(self) -> Precision:
        """Type of the hidden layers' products while training."""
        return self.config.precision or self.defaults.precision

    def _after_step(self) -> None:
        """Evaluate, show and save as often as the config says; the end of the run has its own."""
        if self.local_rank > 0:
            return
        done, last, target = self.step + 1, self.part_done >= 1, self.config.target_psnr
        if not last and self._evaluation_is_due(done):
            psnr = self._evaluate(whole=False)
            if target is not None and psnr >= target and not self._evaluated_whole:
                psnr = self._evaluate()
            if target is not None and psnr >= target:
                CONSOLE.print(f"PSNR {psnr:.2f} dB has reached --target-psnr {target:g}: stopping")
                self.stop_training = True
        self._progress.update(done)
        if self.leaves_files and not last:
            self._save_if_due(done)
            if self.record.seconds_here >= self.first_preview * 2**self._previews:
                self._write_preview()

    def _write_preview(self) -> None:
        """Write preview.png, with twice the samples of the one before."""
        path, seconds = self.base_dir / "preview.png", self.record.seconds_here
        with self.train_lock, self._clock_stopped(), torch.no_grad():
            self.pipeline.eval()
            picture = self.preview(2**self._previews)
        self._previews += 1
        if picture is None:
            return
        image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
        with self.going_on():
            write_each({path: partial(image.save, format="PNG")})
        if self._previews == 1:
            say(f"a first look after {seconds:.0f} s: {path}", CONSOLE)

    def preview(self, times: int) -> np.ndarray | None:
        """A look at the fit, uint8 [height, width, channels], of so many times the samples of the first one.

        Subclasses may have one.
        """

    @contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """For what is not training, once the device has done what it was given."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        with self.record.clock_stopped():
            yield

    def _evaluate(self, *, whole: bool = True) -> float:
        """Measure the PSNR, note it and return it; see `evaluate`."""
        with self.train_lock, self._clock_stopped():
            self.pipeline.eval()
            start = time.monotonic()
            psnr = self.evaluate(whole=whole)
            self._evaluating_took = time.monotonic() - start
        if math.isnan(psnr):
            raise InputError(
                f"the fit's values are no numbers any more after step {self.step + 1}: lower the learning rates "
                "(--optimizers...optimizer.lr) or the frequencies (omega_0, sigma), and start anew"
            )
        self.record.add(self.step + 1, psnr)
        self._evaluated_at, self._evaluated_whole = self.step, whole or not self.measures_samples
        self._progress.evaluated()
        if writer.EVENT_WRITERS:
            writer.put_scalar(name="Eval PSNR", scalar=psnr, step=self.step)
            with self.going_on():
                writer.write_out_storage()
        return psnr

    @property
    def steps_per_evaluation(self) -> int | None:
        """Steps between evaluations; None: by time."""
        given = self.config.steps_per_eval_all_images
        by_time = self.defaults.evaluates_by_time or self.config.max_train_seconds is not None
        return given if given is not None or by_time else self.usual_steps_per_evaluation

    @property
    def usual_steps_per_evaluation(self) -> int:
        """Steps between evaluations on a CPU, where the config has none. Subclasses may have others."""
        return 250

    @property
    def usual_seconds(self) -> float | None:
        """Seconds of training where the config has neither these nor steps; None: 6,000 steps."""
        return None

    def _evaluation_is_due(self, done: int) -> bool:
        """Whether the steps since the last evaluation are over, or a part of the run and enough of its seconds."""
        if self.steps_per_evaluation is not None:
            return done % self.steps_per_evaluation == 0
        steps, seconds = self.record.curve[-1][:2] if self.record.curve else (0, 0.0)
        part = self._part_of(self.step + 1, self.record.seconds) - self._part_of(steps, seconds)
        enough = (1 / _PART_FOR_EVALUATIONS - 1) * self._evaluating_took
        return part > 1 / _EVALUATIONS - 1e-9 and self.record.seconds - seconds >= enough

    @property
    def pace(self) -> str:
        """How a run goes that the config may have left open, for people."""
        batch, turn = self.pipeline.datamanager.get_train_rays_per_batch(), self.config.steps_per_iteration
        turns = f", {turn} steps a turn" if turn != 1 else ""
        every, seconds = self.steps_per_evaluation, self.config.max_train_seconds
        evaluated = "by time" if every is None else f"every {every:,} steps"
        end = f"; ends after {seconds:.0f} s, by its size" if self._timed_by_size and seconds else ""
        return f"{batch:,} {self.unit} a step{turns}, evaluated {evaluated}{end}"

    def evaluate(self, *, whole: bool = True) -> float:
        """PSNR in dB over the evaluation set, or, where that is not asked for, maybe over samples of it."""
        return self.pipeline.get_average_eval_image_metrics(step=self.step)["psnr"]

    def _finish(self) -> Any:
        """The end of every run: an evaluation, a checkpoint and the results."""
        self.training_state = "completed"
        if self.local_rank != 0:
            return None
        if self._evaluated_at != self.step or not self._evaluated_whole:
            self._evaluate()
        if self._previews:
            self._write_preview()
        if self.step >= 0 and self.leaves_files:
            with self.going_on():
                self.save_checkpoint(self.step)
        self._call_back(TrainingCallbackLocation.AFTER_TRAIN, self.step)
        result = self.result()
        if self.leaves_files:
            self.say_where(self.write_results(result))
        return result

    def result(self) -> Any:
        """The figures of the run, after its last evaluation. Subclasses have some."""

    def write_results(self, result: Any) -> dict[str, Path]:
        """Write the result into the run's folder; returns the files by name. Subclasses have some."""
        return {}

    def run_figures(self) -> dict[str, Any]:
        """Figures of every run in metrics.json: its length, target, seed and machine."""
        return {
            "num_steps": self.step + 1,
            "train_seconds": self.record.curve[-1].seconds,
            "target_psnr": self.config.target_psnr,
            "seconds_to_target": self.record.seconds_to(self.config.target_psnr),
            "seed": self.config.machine.seed,
            "num_processes": self.world_size,
            "steps_per_iteration": self.config.steps_per_iteration,
            "precision": self.precision,
            **environment(self.device),
        }

    def say_where(self, results: dict[str, Path]) -> None:
        """Print where config, checkpoints and results lie."""
        files = {"config": self.base_dir / "config.yml", "checkpoints": self.checkpoint_dir, **results}
        for name, path in files.items():
            say(f"  {name:<14} {path}", CONSOLE)

    def _load_checkpoint(self) -> None:
        """Done by setup_optimizers."""

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write a checkpoint that torch.load(weights_only=True) reads, whole or not at all."""
        self._end_writing()
        with self._clock_stopped():
            self._write(step, self._packed(step))

    def _packed(self, step: int) -> memoryview:
        """The content of a checkpoint, which later steps do not change."""
        return packed({"step": step, **self._state.state_dict(), **self.more_state()})

    def _write(self, step: int, content: memoryview) -> float:
        """Write a checkpoint, in any thread; returns the seconds that it took."""
        start = time.monotonic()
        only_latest = self.config.save_only_latest_checkpoint
        write_checkpoint(self.checkpoint_dir, step, content, only_latest=only_latest)
        return time.monotonic() - start

    @check_main_thread
    def _save_if_due(self, done: int) -> None:
        """Save as often as the config says: by steps at once, by time with the file written beside the training.

        Neither counts as training. The thread has a checkpoint's bytes and touches no tensor, so that it disturbs no
        recording of a CUDA graph.
        """
        if self._writing is not None and self._writing.done():
            self._end_writing()
        every, now = self.config.steps_per_save, time.monotonic()
        if every is not None:
            if done % every == 0:
                with self.going_on():
                    self.save_checkpoint(self.step)
        elif self._writing is None and now - self._saved_at >= self._seconds_per_save:
            with self.going_on(), self._clock_stopped():
                content = self._packed(self.step)
                self._saved_at, self._saving_took = now, time.monotonic() - now
                self._writing = self._writer.submit(self._write, self.step, content)

    @property
    def _seconds_per_save(self) -> float:
        """Seconds between checkpoints, by what the last one took."""
        return max(_SECONDS_PER_SAVE, self._saving_took / _PART_FOR_SAVES)

    def _end_writing(self) -> None:
        """Wait for the checkpoint that is being written, if one is, and tell why it could not be."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            with self.going_on():
                self._saving_took += writing.result()

    def more_state(self) -> dict[str, Any]:
        """More of a checkpoint: tensors, plain numbers and text. Subclasses may have some."""
        return {}

    def _check_viewer_warnings(self) -> None:
        """The host warns that nothing is evaluated without a logger; here everything is."""


@contextmanager
def training_precision(precision: Precision, device: str) -> Iterator[None]:
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

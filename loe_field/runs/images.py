"""`ns-train loe-images`: a field for each of thousands of small pictures, many fitted together.

The host starts it and has no part in it after that: no viewer, no checkpoints, one folder for the set, see fields.py.
The same command again goes on where it was stopped or killed, and so do several at once.
"""

import glob
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
import yaml
from nerfstudio.configs.base_config import LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from loe_field.errors import InputError
from loe_field.files import check_name, check_writable, write_whole
from loe_field.network.layers import LoEMLP
from loe_field.runs.fields import (
    RESULTS,
    SUMMARY,
    FieldFolder,
    Item,
    SetOptions,
    histogram_lines,
    items_of,
    together,
)
from loe_field.runs.series import is_series, named, pictures_of, series_name
from loe_field.runs.start import start_of
from loe_field.signals.sizes import PARAMETERS_PER_TARGET
from loe_field.stopping import stop_signals
from loe_field.training.config import require_at_least
from loe_field.training.distributed import fingerprint
from loe_field.training.machine import usable_cores
from loe_field.training.many import ManyRecipe, Stopped
from loe_field.training.progress import duration
from loe_field.training.results import environment
from loe_field.words import printable, say

_Hidden = tyro.conf.Suppress


@dataclass
class ImagesTrainerConfig(TrainerConfig):
    """How to fit a field to each of many small pictures."""

    _target: type = field(default_factory=lambda: ManyPictures)
    data: Path | None = None
    """A folder of pictures, a quoted pattern ("thumbnails/**/*.png"), or a .txt file with a path in each line, relative
    to its own folder."""
    timestamp: str = "fields"
    """Name of the set's folder within <output-dir>/<experiment-name>/loe-images. The same command again goes on there;
    another name is another set."""
    max_num_iterations: int | None = None  # type: ignore[assignment]
    """Steps for each picture, which takes all its pixels at each step, or 16,384 of them. None: 300, and for larger
    pictures 300 for every 16,384 pixels."""
    target_psnr: float | None = None
    """A picture is done as soon as it has this PSNR, dB; the others go on."""
    experts_lr: float = ManyRecipe.experts_lr
    """Learning rate of Muon, which has the matrices; 0.03 for 1,000 steps or more."""
    fields_lr: float = ManyRecipe.fields_lr
    """Learning rate of Adam, which has biases and last layers."""
    parameters_per_target: float = PARAMETERS_PER_TARGET
    """Size of the networks: numbers of each to one number of its picture."""
    layer_width: int | None = None
    """Channels of the hidden layers. None: what parameters-per-target leaves."""
    tile_size: tuple[int, ...] | None = None
    """Experts per axis of every level, finest first, which says the number of levels too. None: by the size."""
    num_frequencies: int | None = None
    """Octaves of the encoded coordinates. None: 1 to 3, by the size."""
    same_start: bool = False
    """All fields begin with the weights of --machine.seed, instead of each with a seed of its own from that and its
    name."""
    init_from: Path | None = None
    """A field that all begin with: a safetensors file of save_field or loe-export; or the folder of a set, of whose
    fields it is the mean. The networks must have one shape."""
    group_size: int | None = None
    """Pictures that are fitted together. None: as many as have 262,144 pixels on a CPU, 16 million on a GPU."""
    num_threads: int | None = None
    """Threads to compute with on a CPU, a field to a thread. None: this process's share of the machine's cores."""
    machine: MachineConfig = field(
        default_factory=lambda: MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu")
    )
    """The seed, and the device: a GPU if there is one."""
    # The host's own, of which nothing here makes use.
    project_name: Annotated[str | None, _Hidden] = None
    logging: Annotated[LoggingConfig, _Hidden] = field(default_factory=LoggingConfig)
    viewer: Annotated[ViewerConfig, _Hidden] = field(default_factory=ViewerConfig)
    pipeline: Annotated[VanillaPipelineConfig, _Hidden] = field(default_factory=VanillaPipelineConfig)
    optimizers: Annotated[dict[str, Any], _Hidden] = field(default_factory=dict)
    vis: Annotated[Literal["none"], _Hidden] = "none"  # type: ignore[assignment]
    prompt: Annotated[str | None, _Hidden] = None
    relative_model_dir: Annotated[Path, _Hidden] = Path()
    load_scheduler: Annotated[bool, _Hidden] = True
    steps_per_save: Annotated[int, _Hidden] = 1
    steps_per_eval_batch: Annotated[int, _Hidden] = 1
    steps_per_eval_image: Annotated[int, _Hidden] = 1
    steps_per_eval_all_images: Annotated[int, _Hidden] = 1
    mixed_precision: Annotated[bool, _Hidden] = False
    use_grad_scaler: Annotated[bool, _Hidden] = False
    save_only_latest_checkpoint: Annotated[bool, _Hidden] = True
    load_dir: Annotated[Path | None, _Hidden] = None
    load_step: Annotated[int | None, _Hidden] = None
    load_config: Annotated[Path | None, _Hidden] = None
    load_checkpoint: Annotated[Path | None, _Hidden] = None
    log_gradients: Annotated[bool, _Hidden] = False
    gradient_accumulation_steps: Annotated[dict[str, int], _Hidden] = field(default_factory=dict)
    start_paused: Annotated[bool, _Hidden] = False

    def set_experiment_name(self) -> None:
        """Name the experiment after the folder, or the list's file."""
        if self.experiment_name is None:
            data = self.data
            self.experiment_name = "default" if data is None else series_name(data) if is_series(data) else data.stem

    def set_timestamp(self) -> None:
        """Refuse names that no file can have: the host calls this before anything else."""
        for option, path in {
            "--data": self.data,
            "--output-dir": self.output_dir,
            "--init-from": self.init_from,
        }.items():
            if path is not None:
                check_name(path, option)
        check_name(self.get_base_dir(), "--experiment-name or --timestamp")

    def print_to_terminal(self) -> None:
        """Say where the set goes."""
        CONSOLE.quiet = CONSOLE.quiet or place_here()[0] > 0
        say(f"{self.method_name} on {self.machine.device_type}: {self.get_base_dir()}", CONSOLE)

    def save_config(self) -> None:
        """Look at the options: the host calls this before anything is built. config.yml is written later."""
        if self.data is None or not str(self.data):
            raise InputError("--data is missing: give a folder of pictures, a pattern, or a .txt file with their paths")
        require_at_least(1, self, "max_num_iterations", "layer_width", "group_size", "num_threads")
        require_at_least(0, self, "num_frequencies")
        if self.tile_size is not None and (len(self.tile_size) < 2 or min(self.tile_size) < 1):
            raise InputError(
                f"--tile-size is {' '.join(map(str, self.tile_size))}: give 2 levels or more, 1 or more each"
            )
        for name in ("experts_lr", "fields_lr", "parameters_per_target"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(f"--{name.replace('_', '-')} is {value:g}: it must be above 0, and finite")
        if self.target_psnr is not None and self.target_psnr != self.target_psnr:
            raise InputError("--target-psnr is nan: give a number of dB")
        if not 0 <= self.machine.seed < 2**32:
            raise InputError(f"--machine.seed is {self.machine.seed}: it must be at least 0, and below 2^32")
        if self.machine.device_type not in ("cpu", "cuda"):
            raise InputError(f"--machine.device-type is {self.machine.device_type}: give cpu or cuda")
        if self.machine.device_type == "cuda" and not torch.cuda.is_available():
            raise InputError("--machine.device-type is cuda but torch finds no CUDA GPU: leave it out, or give cpu")
        if self.machine.num_devices > 1 or self.machine.num_machines > 1:
            raise InputError(
                "--machine.num-devices is for one fit in several processes: start several of these commands, or "
                "torchrun --nproc-per-node N -m loe_field.train loe-images ..."
            )
        root, base = (Path(os.path.abspath(path)) for path in (self.output_dir, self.get_base_dir()))
        if root not in base.parents:
            raise InputError(
                f"--experiment-name and --timestamp lead out of the folder {root}: give names without '..'"
            )

    def options(self, start: LoEMLP | None) -> SetOptions:
        """How the fields are made."""
        recipe = ManyRecipe(self.max_num_iterations, self.target_psnr, self.experts_lr, self.fields_lr)
        return SetOptions(
            recipe,
            self.machine.seed,
            self.same_start,
            self.parameters_per_target,
            self.layer_width,
            self.tile_size,
            self.num_frequencies,
            None if start is None else fingerprint(start.parameters()),
        )


def place_here() -> tuple[int, int, int, int]:
    """This process among those of torchrun or srun: its number, how many, and the same on its machine."""

    def number(*names: str, default: int) -> int:
        found = next((os.environ[name] for name in names if os.environ.get(name)), "")
        digits = found.split("(")[0].split(",")[0]  # Slurm's 2(x3): two on each of three machines
        return int(digits) if digits.isdecimal() else default

    rank = number("RANK", "SLURM_PROCID", default=0)
    size = max(number("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", default=1), rank + 1)
    local = number("LOCAL_RANK", "SLURM_LOCALID", default=0)
    local_size = number("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", default=1)
    return rank, size, local, max(local_size, local + 1)


def listed(data: Path) -> dict[str, Path]:
    """The pictures of a folder, a pattern or a list, by name.

    Raises:
        InputError: there is none.
    """
    data = data.expanduser()
    if data.is_file() and data.suffix.lower() == ".txt":
        try:
            lines = [line.strip() for line in data.read_text("utf8", "surrogateescape").splitlines()]
        except OSError as error:
            raise InputError(f"{data} cannot be read: {error.strerror}") from None
        paths = [Path(os.path.abspath(data.parent / Path(line).expanduser())) for line in lines if line]
        if not paths:
            raise InputError(f"{data} names no picture: give it a path in each line")
        return named(list(dict.fromkeys(paths)))
    if data.is_file():
        return named([Path(os.path.abspath(data))])
    if not data.exists() and not glob.has_magic(str(data)):
        raise InputError(f"--data {data} does not exist: give a folder of pictures, a pattern, or a .txt file of paths")
    return pictures_of(data)


class ManyPictures:
    """Stands where the host wants a Trainer, and fits all pictures of the config's list that nobody else fits.

    Raises:
        InputError: there is no picture, or an option cannot be used.
    """

    def __init__(self, config: ImagesTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        assert config.data is not None
        self.config = replace(config, output_dir=config.output_dir.expanduser().resolve())
        check_writable(self.config.output_dir, "--output-dir")
        self.folder = self.config.get_base_dir()
        self.rank, self.size, local, local_size = place_here()
        self.device = torch.device("cpu")
        if config.machine.device_type == "cuda":
            self.device = torch.device("cuda", local % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        if config.num_threads is not None or local_size > 1:
            torch.set_num_threads(config.num_threads or max(1, len(usable_cores()) // local_size))
        self.pictures = listed(config.data)
        self.start = None if config.init_from is None else start_of(config.init_from.expanduser())

    def setup(self) -> None:
        """Nothing yet."""

    def train(self) -> None:
        """Fit all, and show what came out.

        Raises:
            SystemExit: 1 if a picture has a problem; 128 and the signal's number after Ctrl-C or SIGTERM.
            InputError: the folder is of other options, or cannot be written any more.
        """
        begun, problems = time.perf_counter(), {}
        items = items_of(self.pictures, problems)
        folder = FieldFolder(self.folder, items, self.config.options(self.start))
        folder.problems |= problems
        if not (self.folder / "config.yml").exists():
            with write_whole(self.folder / "config.yml") as path:
                path.write_text(yaml.dump(self.config), "utf8")
        before = {name: place.member.decibels for name, place in folder.done().items()}
        if before:
            say(f"{len(before):,} of {len(self.pictures):,} pictures are fitted already", CONSOLE)
        with stop_signals(lambda _: None) as received, Show(len(self.pictures), before, received) as show:
            for name, problem in problems.items():
                show.problem(name, problem)
            self._fit_all(folder, show, received)
        self._report(folder, show, begun, received)

    def _fit_all(self, folder: FieldFolder, show: "Show", received: Sequence[int]) -> None:
        """Take pictures until all are done, by whomever."""
        most = -(-len(self.pictures) // self.size)

        def count(first: Item) -> int:
            width, height = first.size
            usual = together(width, height, self.device, torch.get_num_threads())
            return min(self.config.group_size or usual, most)

        while not received:
            with folder.claim(count) as (number, items):
                if items:
                    try:
                        folder.fit(number, items, self.device, show, self.start)
                    except Stopped:
                        return
                    continue
            if not folder.others_at_work():
                return
            show.waiting()
            folder.wait()

    def _report(self, folder: FieldFolder, show: "Show", begun: float, received: Sequence[int]) -> None:
        seconds = time.perf_counter() - begun
        rate = show.here / seconds if seconds > 0 else 0.0
        more: dict[str, Any] = {
            "method": self.config.method_name,
            "data": str(self.config.data),
            "fitted_here": show.here,
            "seconds_here": seconds,
            "pictures_per_second_here": rate,
            "num_threads": torch.get_num_threads(),
            **environment(self.device),
        }
        summary = folder.write_results(list(self.pictures), more)
        for line in histogram_lines(summary["histogram"]):
            say(line, CONSOLE)
        if summary["fitted"]:
            figures = " " if summary["psnr_mean"] is None else (
                f": PSNR mean {summary['psnr_mean']:.2f}, median {summary['psnr_median']:.2f}, least "
                f"{summary['psnr_min']:.2f} dB, "
            )  # fmt: skip
            say(
                f"{summary['fitted']:,} of {len(self.pictures):,} pictures{figures}at most "
                f"{summary['parameters_per_target']:.3f} parameters per target",
                CONSOLE,
            )
        say(f"{show.here:,} fitted here in {duration(seconds)}, {rate:.1f} a second", CONSOLE)
        for path in (RESULTS, SUMMARY):
            say(f"  {self.folder / path}", CONSOLE)
        if folder.problems:
            names = list(folder.problems)
            say(f"{len(names):,} could not be fitted: {', '.join(names[:5])}{' ...' * (len(names) > 5)}", CONSOLE)
        if received:
            say("stopped; the same command goes on", CONSOLE)
            raise SystemExit(128 + received[0])
        if folder.problems:
            raise SystemExit(1)


class Show:
    """The console: a bar over the pictures in a terminal, a line a group in a log."""

    def __init__(self, count: int, before: dict[str, float], received: Sequence[int]) -> None:
        self._count, self._psnr, self._received = count, list(before.values()), received
        self._failed, self.here, self._begun = 0, 0, time.perf_counter()
        self._live = Progress(
            TextColumn("pictures"), BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.fields[status]}"),
            console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal,
        )  # fmt: skip
        self._task = self._live.add_task("", total=count, completed=len(before), status="")

    def __enter__(self) -> "Show":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _line(self, part: float = 0.0) -> str:
        finite = [value for value in self._psnr if value < float("inf")]
        mean = f"  mean {sum(finite) / len(finite):.2f} dB" if finite else ""
        done, seconds = self.here + part, time.perf_counter() - self._begun
        left = self._count - self._failed - len(self._psnr) - part
        eta = f"  ETA {duration(seconds * left / done)}" if done > 0 and left > 0 else ""
        return f"{len(self._psnr):,}/{self._count:,}{mean}  {duration(seconds)}{eta}"

    def watch(self, part: float) -> None:
        """Show how many pictures of the group under way are done; a signal ends the fit."""
        if self._received:
            raise Stopped
        if not self._live.disable:
            self._live.update(self._task, completed=len(self._psnr) + part, status=self._line(part))

    def fitted(self, psnr: Sequence[float]) -> None:
        """Count pictures that are done."""
        self._psnr += psnr
        self.here += len(psnr)
        self._live.update(self._task, completed=len(self._psnr), status=self._line())
        if self._live.disable:
            say(self._line(), CONSOLE)

    def waiting(self) -> None:
        """Nothing is left but what others are fitting."""
        self._live.update(self._task, status="waiting for other processes")

    def problem(self, name: str, problem: str) -> None:
        """Tell of a picture that cannot be fitted."""
        self._failed += 1
        if not CONSOLE.quiet:
            say(f"left out {printable(name)}: {problem}", sys.stderr)

"""Fit an array from Python: the recipe and the Trainer of `ns-train loe-image`, and the field with its measures back.

The host of the training, nerfstudio, is imported when the first fit begins.
"""

import copy
import dataclasses
import functools
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, get_type_hints

import numpy as np
import torch
from numpy.typing import ArrayLike

from loe_field.errors import InputError
from loe_field.network.layers import LoEMLP
from loe_field.typed import typed

if TYPE_CHECKING:
    from loe_field.image.load import PictureField
    from loe_field.pictures.picture import Picture
    from loe_field.render.dataset import FieldDataset
    from loe_field.training.record import Point

_CHUNK = 65536
"""Coordinates evaluated at once; as many as the command evaluates, so that the last bits are the same."""
_ONE_AT_A_TIME = threading.Lock()

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Method = Literal["loe-image", "loe-image-smooth", "loe-image-paper"]


@dataclass(frozen=True)
class ImageFit:
    """A field fitted to an array, and its measures.

    Attributes:
        field: takes coordinates [..., 2] (x to the right, y down) in parts of the picture's width and height, [0, 1),
            and gives values [..., channels] where 1 is white, of HDR on its curve; on the device of the fit.
        reconstruction: the array as the field has it: of its shape and dtype.
        psnr: dB of `reconstruction` over all values on [0, 1]; infinite if not one differs.
        ssim: of `reconstruction`, mean over the channels; None if a side is shorter than 11 pixels.
        seconds: training time, evaluations not counted.
        num_steps: optimizer steps.
        curve: the evaluations: steps, seconds, PSNR.
        metrics: everything measured, as in the command's metrics.json.
        folder: the run's folder, as the command leaves it; None if no output folder was given.
    """

    field: LoEMLP
    reconstruction: np.ndarray
    psnr: float
    ssim: float | None
    seconds: float
    num_steps: int
    curve: "list[Point]"
    metrics: dict[str, Any] = dataclasses.field(repr=False)
    folder: Path | None
    _field: "PictureField" = dataclasses.field(repr=False)

    def at(self, xy: ArrayLike) -> np.ndarray:
        """The field at any coordinates.

        Args:
            xy: [..., 2] in pixels: (0, 0) is the picture's upper left corner, (width, height) its lower right one, and
                (0.5, 0.5) the centre of the first pixel. Outside of the picture the field has learned nothing.

        Returns:
            float32 [..., channels], or [...] where the array had no channels; 1 is white and nothing is clamped, but
            HDR, which is in the array's own numbers and not below 0.

        Raises:
            InputError: xy is not of that shape.
        """
        try:
            coords = np.asarray(xy, dtype=np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"xy cannot be read as coordinates ({reason}): give numbers [..., 2]") from None
        if coords.ndim == 0 or coords.shape[-1] != 2:
            raise InputError(f"xy has the shape {list(coords.shape)}: coordinates are [..., 2], x and y in pixels")
        values = self._field.picture.from_unit(self._evaluate(torch.from_numpy(coords.reshape(-1, 2))).numpy())
        return values.reshape((*coords.shape[:-1], *self.reconstruction.shape[2:]))

    def render(self, scale: float = 1.0, *, upscaling: Literal["spline", "field"] = "spline") -> np.ndarray:
        """The whole picture at another size, in the array's dtype; 1 gives the reconstruction.

        Args:
            scale: how many times as wide and high, above 0. Below 1 every pixel is the mean of those under it.
            upscaling: source of values between the pixels' centres, above 1 and where 1 / scale is not whole: the
                cubic spline through the field's pixels, or the field itself. A field of "loe-image" has learned nothing
                there and is noise; that of "loe-image-smooth" has.

        Returns:
            [height, width] or [height, width, channels], each side rounded to whole pixels, at least 1.

        Raises:
            InputError: scale is not a number above 0, or upscaling is neither.
        """
        from loe_field.pictures.memory import available_memory
        from loe_field.pictures.picture import codes, hdr_values
        from loe_field.render.window import on_grid, pictured, rendered_rows, view_of

        typed(Literal["spline", "field"], upscaling, "upscaling")
        scale = typed(float, scale, "scale")
        if scale <= 0:
            raise InputError(f"scale is {scale}: give a number above 0")
        kind, dtype = self._field.picture, self.reconstruction.dtype
        view = view_of((kind.width, kind.height), scale=scale)
        needed = 2 * view.height * view.width * kind.channels * dtype.itemsize  # the bands, and the bands joined
        free = available_memory()
        if needed > free:
            raise InputError(
                f"the rendering is too large for memory: {view.width} x {view.height} pixels take about "
                f"{needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free. Give a smaller scale"
            )
        function = pictured(on_grid(self._evaluate), kind, view, upscaling)
        bands = rendered_rows(function, view, chunk=_CHUNK, alpha=kind.has_alpha)
        values = np.concatenate(
            [
                codes(band, dtype) if kind.peak is None else hdr_values(band, dtype, alpha=kind.has_alpha)
                for band in bands
            ]
        )
        return values.reshape(*values.shape[:2], *self.reconstruction.shape[2:])

    @torch.no_grad()
    def _evaluate(self, coords: torch.Tensor) -> torch.Tensor:
        """Values as fitted, float32 [N, channels] at coordinates [N, 2] in pixels, on the CPU."""
        from loe_field.render.window import evaluated

        return evaluated(self._field, self._field.device, _CHUNK)(coords)


def fit_images(
    arrays: Sequence[ArrayLike],
    *,
    names: Sequence[str] | None = None,
    num_steps: int | None = None,
    target_psnr: float | None = None,
    seed: int = 42,
    same_start: bool = False,
    start: LoEMLP | None = None,
    parameters_per_target: float = 0.55,
    layer_width: int | None = None,
    tile_size: tuple[int, ...] | None = None,
    num_frequencies: int | None = None,
    experts_lr: float = 0.06,
    fields_lr: float = 0.03,
    device: Literal["cpu", "cuda"] | None = None,
    num_threads: int | None = None,
    group_size: int | None = None,
    hdr: bool = False,
) -> "FieldDataset":
    """Fit a field to each of many small pictures, those of one size and kind together, as `ns-train loe-images` does.

    Each field becomes what it would alone with its seed. Nothing of nerfstudio is needed. Fits in several threads wait
    for each other.

    Args:
        arrays: each as `fit_image` takes one.
        names: one for each, no two alike, which decide the seeds; None: "0", "1", ...
        num_steps: for each picture, over which the learning rates fall. None: 300 for every 16,384 pixels.
        target_psnr: a picture is done as soon as it has so many dB.
        seed: of everything.
        same_start: all begin with the weights of `seed` instead of a seed of their own.
        start: a field that all begin with, see `shared_start`.
        parameters_per_target: size of the networks.
        layer_width: channels of the hidden layers. None: by the size, like the others.
        tile_size: experts per axis of every level, finest first.
        num_frequencies: octaves of the encoded coordinates.
        experts_lr: learning rate of Muon, which has the matrices.
        fields_lr: learning rate of Adam, which has biases and last layers.
        device: None: a GPU if there is one.
        num_threads: on a CPU, a field to a thread. None: torch's own number.
        group_size: pictures fitted together. None: by their size and the memory.
        hdr: the arrays hold light, as `fit_image` has it.

    Returns:
        The fields in the order of the arrays, with `psnr`, seeds and weights; see FieldDataset.

    Raises:
        InputError: an array or an option cannot be used.
    """
    from loe_field.export.shards import Place, Shard
    from loe_field.render.dataset import FieldDataset
    from loe_field.runs.fields import SetOptions, fit_pictures, kind_of, together
    from loe_field.training.many import ManyRecipe

    names = [str(number) for number in range(len(arrays))] if names is None else list(names)
    if len(names) != len(arrays) or len(set(names)) < len(names):
        raise InputError(f"{len(names)} names, {len(set(names))} different ones, came for {len(arrays)} arrays")
    for name, value in {"num_steps": num_steps, "num_threads": num_threads, "group_size": group_size}.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options = SetOptions(
        ManyRecipe(num_steps, target_psnr, experts_lr, fields_lr),
        seed, same_start, parameters_per_target, layer_width, tile_size, num_frequencies,
    )  # fmt: skip
    groups: dict[Any, list[tuple[int, Picture]]] = {}
    for number, array in enumerate(arrays):
        try:
            picture = _picture(_checked(array, hdr), hdr, in_file=False)
        except InputError as error:
            raise InputError(str(error).replace("the array", f"arrays[{number}]", 1)) from None
        groups.setdefault((picture.values.shape, picture.values.dtype), []).append((number, picture))
    places: dict[int, Place] = {}
    threads = torch.get_num_threads()
    with _ONE_AT_A_TIME, torch.inference_mode(False), torch.enable_grad():
        try:
            torch.set_num_threads(num_threads or threads)
            for group in groups.values():
                first = group[0][1]
                most = group_size or together(first.width, first.height, where, torch.get_num_threads())
                for begin in range(0, len(group), most):
                    numbers, pictures = zip(*group[begin : begin + most])
                    those = [names[number] for number in numbers]
                    network, members = fit_pictures(pictures, those, options, where, start=start)
                    shard = Shard.of(network, kind_of(first), tuple(members), {})
                    places |= {number: Place(shard, row) for row, number in enumerate(numbers)}
        finally:
            torch.set_num_threads(threads)
    return FieldDataset.of([places[number] for number in range(len(arrays))])


def shared_start(
    arrays: Sequence[ArrayLike],
    *,
    rounds: int = 60,
    num_steps: int = 30,
    arrays_per_round: int = 32,
    seed: int = 42,
    **options: Any,
) -> LoEMLP:
    """A field from which fits of pictures like these go fast, by Reptile.

    In every round some pictures are fitted for a few steps from the field of before, which then moves towards their
    mean, by parts that fall to 0 (Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018).

    Args:
        arrays: pictures of one size and kind, the more the better.
        rounds: moves.
        num_steps: of each fit; about as many as the fits from this start will have.
        arrays_per_round: fits in a round.
        seed: of the first field and the choice of pictures.
        **options: of `fit_images`.

    Returns:
        The field: `start` of `fit_images`; `save_field` keeps it for --init-from.

    Raises:
        InputError: see `fit_images`.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}: it must be at least 1")
    choices = np.random.default_rng(seed)
    start: LoEMLP | None = None
    for number in range(rounds):
        chosen = choices.choice(len(arrays), min(arrays_per_round, len(arrays)), replace=False)
        some = [arrays[i] for i in chosen]
        fits = fit_images(some, num_steps=num_steps, seed=seed, same_start=True, start=start, **options)
        weights = [fits[i]["weights"] for i in range(len(fits))]
        if start is None:
            start = fits.network(0)  # of which the first move leaves nothing
        with torch.no_grad():
            for name, parameter in start.named_parameters():
                mean = torch.stack([of_one[name] for of_one in weights]).mean(0)
                parameter.lerp_(mean, 1 - number / rounds)
    assert start is not None
    return start


def _one_at_a_time(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let calls in several threads wait: random numbers, torch's threads and the host's console are the process's.

    Keyword arguments but the array become what their types say, or an InputError, which has the names of the arguments.
    """

    @functools.wraps(function)
    def waiting(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        kinds = get_type_hints(function)
        for name in kwargs.keys() & kinds.keys() - {"array"}:
            kwargs[name] = typed(kinds[name], kwargs[name], name)
        try:
            with _ONE_AT_A_TIME:
                return function(*args, **kwargs)
        except InputError as error:
            raise InputError(re.sub(r"--(?:[\w-]+\.)*([\w-]+)", _argument, str(error))) from None

    return waiting


def _argument(option: re.Match[str]) -> str:
    """The argument of fit_image that a command's option is here."""
    name = option[1].replace("-", "_")
    return {"max_num_iterations": "num_steps", "device_type": "device"}.get(name, name)


@_one_at_a_time
def fit_image(
    array: ArrayLike,
    *,
    num_steps: int = 6000,
    seed: int = 42,
    precision: Literal["fp32", "tf32", "bf16"] | None = "fp32",
    device: Literal["cpu", "cuda"] | None = None,
    progress: bool = False,
    method: Method = "loe-image",
    max_train_seconds: float | None = None,
    target_psnr: float | None = None,
    num_layers: int | None = None,
    layer_width: int | None = None,
    num_frequencies: int | None = None,
    tile_size: int | None = None,
    pixels_per_batch: int | Literal["auto"] | None = "auto",
    num_threads: int | None = None,
    hdr: bool = False,
    output_dir: str | Path | None = None,
    radiance: bool = False,
) -> ImageFit:
    """Fit a field to a picture, as `ns-train loe-image` does.

    The caller's random numbers, number of threads and console are as before afterwards. Fits in several threads wait
    for each other. Ctrl-C ends the fit after the step that is under way, as a KeyboardInterrupt.

    Args:
        array: [height, width] or [height, width, channels] with 1 to 4 channels, the last of 2 or 4 being alpha; uint8,
            uint16, or floats in [0, 1]. It may be read until the fit ends.
        num_steps: optimizer steps; the learning rates fall over them.
        seed: of the initial weights and the order of the pixels.
        precision: type of the hidden layers' products while training; bf16 is for GPUs and for CPUs with AVX-512 BF16,
            tf32 for GPUs, both from Ampere on. None: tf32 on such a GPU, fp32 elsewhere, the command's own choice.
        device: None: a GPU if there is one.
        progress: show the command's progress.
        method: the recipe: "loe-image" for the pixels, "loe-image-smooth" for the plane between them too,
            "loe-image-paper" for the paper's net (its own number of steps is 9000).
        max_train_seconds: train for so long instead of num_steps.
        target_psnr: stop as soon as an evaluation reaches this, dB.
        num_layers: linear layers in all. None: the recipe's, 10 for pictures of up to 512 pixels.
        layer_width: channels of the hidden layers. None: the recipe's, 64.
        num_frequencies: octaves of positional encoding. None: the recipe's, 7.
        tile_size: experts per axis. None: the recipe's, 2, and 4 or 8 for large pictures.
        pixels_per_batch: pixels of one step. "auto": the recipe's, 8,192 or more for large pictures. None: all.
        num_threads: threads on a CPU; a fixed number makes a fit repeatable to the last bit. None: the fastest.
        hdr: the array holds light: floats of any height from 0 on, fitted and measured on the mu-law curve as the
            command does with EXR; alpha stays within [0, 1].
        output_dir: leave a run's folder below this one, for `ns-eval`, `ns-viewer` and the like, with the array in it
            as picture.png, picture.tif or picture.exr. None: no file is left.
        radiance: the older name of hdr.

    Raises:
        InputError: the array or an option cannot be used; it is a ValueError.
        ImportError: nerfstudio, or another package of the full installation, is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # nerfstudio 1.1.5 uses names that torch has changed since
        try:
            from loe_field import methods
            from loe_field.adapter.trainer import SignalTrainer
            from loe_field.image.load import PictureField
            from loe_field.pictures.picture import blank_picture
            from loe_field.training.in_process import in_process
        except ModuleNotFoundError as error:
            package = (error.name or "nerfstudio").partition(".")[0]
            raise ImportError(f"fit_image needs {package}, which is not installed: pip install loe-field") from error
    values = _checked(array, hdr or radiance)
    recipes = {spec.config.method_name: spec.config for spec in methods.PICTURES}
    config: Any = replace(
        copy.deepcopy(recipes[method]),
        experiment_name="array",
        output_dir=Path(tempfile.gettempdir() if output_dir is None else output_dir),
        max_num_iterations=num_steps,
        max_train_seconds=max_train_seconds,
        target_psnr=target_psnr,
        precision=precision,
        num_threads=num_threads,
    )
    config.machine.seed, config.machine.device_type = seed, device or config.machine.device_type
    if pixels_per_batch != "auto":
        config.pipeline.datamanager.pixels_per_batch = pixels_per_batch
    sizes = {"num_layers": num_layers, "layer_width": layer_width, "tile_size": tile_size}
    sizes |= {"num_frequencies": num_frequencies}
    loe = config.pipeline.model.loe
    config.pipeline.model.loe = replace(loe, **{name: size for name, size in sizes.items() if size is not None})
    config.set_timestamp()
    picture = _picture(values, hdr or radiance, in_file=output_dir is not None)
    with in_process(config, show=progress):
        trainer = SignalTrainer(config, leaves_files=output_dir is not None)
        datamanager: Any = trainer.config.pipeline.datamanager
        datamanager.picture = picture
        folder = trainer.claim_folder()
        if folder is not None:
            try:
                datamanager.data = _write(picture, folder.path)
            except InputError:
                folder.discard()
                raise
        trainer.setup()
        reconstruction, metrics = trainer.train()
        field = trainer.pipeline.model.field
        assert isinstance(field, LoEMLP)
        field.eval().zero_grad()
    return ImageFit(
        field=field,
        reconstruction=reconstruction.stored.values.astype(values.dtype).reshape(values.shape),
        psnr=metrics["psnr"],
        ssim=metrics["ssim"],
        seconds=metrics["train_seconds"],
        num_steps=metrics["num_steps"],
        curve=trainer.record.curve,
        metrics=metrics,
        folder=None if output_dir is None else trainer.base_dir,
        _field=PictureField(field, blank_picture(picture.kind)),
    )


def _checked(array: ArrayLike, hdr: bool) -> np.ndarray:
    """The array with native numbers.

    Raises:
        InputError: its shape, dtype or numbers are not those of a picture, or of HDR.
    """
    if isinstance(array, str | bytes | Path):
        raise InputError(f"{str(array)!r} is no array: read the picture first, with skimage.io.imread for one")
    if np.ma.is_masked(array):
        raise InputError("the array has masked values: fill them before fitting, ma.filled(...)")
    try:
        values = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the array cannot be read as one ({reason}): give numbers of one shape, on the CPU") from None
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 2, 3, 4)):
        raise InputError(
            f"the array has the shape {list(values.shape)}: give [height, width], or [height, width, channels] with 1 "
            "to 4 channels"
        )
    from loe_field.pictures.memory import check_picture_memory

    if 0 in values.shape:
        raise InputError(f"the array has no pixels: its shape is {list(values.shape)}")
    height, width, channels = np.atleast_3d(values).shape
    check_picture_memory(height, width, channels, values.itemsize, "the array")
    if hdr and values.dtype.kind != "f":
        raise InputError(f"the array holds {values.dtype} numbers: hdr=True is for floats")
    if values.dtype not in (np.uint8, np.uint16) and values.dtype.kind != "f":
        raise InputError(f"the array holds {values.dtype} numbers: give uint8, uint16, or floats in [0, 1]")
    if values.dtype.kind == "f":
        bad = int(values.size - np.isfinite(values).sum())
        if bad:
            raise InputError(f"the array holds {bad} values that are NaN or infinite: replace them before fitting")
        if values.max() > np.finfo(np.float32).max:
            raise InputError(
                f"the array goes up to {values.max():g}, beyond floats of 32 bits: scale it before fitting"
            )
        if values.min() < 0:
            raise InputError(f"the array holds floats down to {values.min():g}: they must not be below 0")
        if not hdr and values.max() > 1:
            raise InputError(
                f"the array holds floats from {values.min():g} to {values.max():g}: scale them into 0..1 before "
                "fitting, or say hdr=True if they are light"
            )
        if hdr and values.ndim == 3 and values.shape[2] in (2, 4) and values[..., -1].max() > 1:
            raise InputError(
                f"the array's alpha goes up to {values[..., -1].max():g}: scale it into 0..1 before fitting"
            )
    return np.require(values, requirements=["C", "W"])


def _picture(values: np.ndarray, hdr: bool, *, in_file: bool) -> "Picture":
    """The array as a picture without loss: PNG for 8 bits, TIFF for more, EXR for HDR.

    Floats of more than 32 bits become those of 32, in which the fit computes; so do those of 16 in a TIFF.
    """
    from loe_field.pictures.picture import CHANNEL_NAMES, Picture
    from loe_field.pictures.read import as_hdr

    if values.dtype.itemsize > 4 or (values.dtype == np.float16 and in_file and not hdr):
        values = values.astype(np.float32)
    values = np.atleast_3d(values)
    file_format = "EXR" if hdr else "PNG" if values.dtype == np.uint8 else "TIFF"
    picture = Picture(values, file_format, CHANNEL_NAMES[values.shape[2]])
    return as_hdr(picture, "the array") if hdr else picture


def _write(picture: "Picture", folder: Path) -> Path:
    """Write the picture into the run's folder."""
    from loe_field.files import write_whole
    from loe_field.pictures.write import write_picture

    path = folder / f"picture{picture.suffix}"
    with write_whole(path) as temporary:
        write_picture(temporary, picture)
    return path

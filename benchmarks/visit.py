"""A visit to a GPU that is there for minutes: its parts, the most valuable first, each with a time limit of its own.

    OUT=results benchmarks/gpu.sh a               # runs this, once the wheels are installed
    OUT=rehearsal benchmarks/gpu.sh a --rehearse  # the same at tiny sizes on a CPU

Nothing stops at a failure. What comes of a part lies in $OUT as soon as it is there; log.txt holds all that was
printed, parts.csv how each part ended, summary.txt the table that is printed last (`benchmarks.summary`).
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from loe_field.runs.child import ns_train

ROOT = Path(__file__).parents[1]
TESTS = ("tests/network", "tests/training", "tests/baselines", "tests/nerf")
LAST_SECONDS = 10.0
"""Kept back from the limit for what ends a part and for the table."""


@dataclass(frozen=True)
class Part:
    """One command, and what it may take."""

    name: str
    seconds: float
    words: Sequence[str]
    """After `python`."""
    stdin: str = ""
    beside: Sequence[Sequence[str]] = ()
    """Commands that run at the same time, whose results and times do not count: what a first start pays."""
    needs: Path | None = None
    """A file or folder without which the part is left out."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More of it than this process has."""


@dataclass(frozen=True)
class Sizes:
    """All that a rehearsal makes smaller."""

    camera: int = 262_144
    batch: int = 8192
    repeats: int = 40
    target: float = 39.05
    steps: int = 6000
    picture_seconds: float = 60
    scene_seconds: float = 120
    rays: int = 4096
    sweep_seconds: float = 70
    large: int = 8192
    large_steps: int = 2000
    many_seconds: float = 10
    processes: int = 8
    precisions: Sequence[str] = ("bf16", "tf32")
    exact: str = "tf32"
    """The precision beside bf16 that the device fits in."""
    sweep: Sequence[str] = ()
    """More options of the sweep of blocks."""
    interpreter: str = "0"
    """Whether the sweep runs in Triton's interpreter."""
    image: str = ""
    """More options of loe-image."""
    scene: str = ""
    """More options of methods for scenes."""
    tests: Sequence[str] = ("-m", "gpu")


TINY = Sizes(
    camera=1500, batch=500, repeats=3, target=12, steps=12, picture_seconds=2, scene_seconds=3, rays=64,
    sweep_seconds=5, large=128, large_steps=4, many_seconds=1, processes=2,
    sweep=("--rows", "100", "--device", "cpu"), interpreter="1", exact="fp32",
    image="--pipeline.datamanager.pixels-per-batch 500",
    scene="--pipeline.model.num-samples 8 --pipeline.model.num-layers 3",
    tests=("-m", "gpu or slow", "-k", "gpu or in_the_interpreter"),
)  # fmt: skip


def step(out: Path, name: str, sizes: Sizes, precision: str, *words: str, table: str = "step.csv") -> Part:
    """A benchmark of whole steps."""
    common = ("--precision", precision, "--repeats", str(sizes.repeats), "--output", str(out / table))
    return Part(name, 80, ("-m", "benchmarks.step", *common, *words))


def fits(out: Path, name: str, seconds: float, runs: Sequence[str], needs: Path | None = None) -> Part:
    """Runs of ns-train in one process."""
    words = ("-m", "benchmarks.fits", "--output", str(out / "fits.jsonl"), "--pictures", str(out))
    return Part(name, seconds, words, "\n".join(runs) + "\n", needs=needs)


def visit_a(out: Path, sizes: Sizes, data: Path, scratch: Path) -> Iterator[Part]:
    """Are the kernels right, the full camera's step beside its baselines, and what that makes of fits."""
    full = ("--what", "step", "--points", str(sizes.camera))
    compiled = ("-m", "benchmarks.step", *full, "--repeats", "2", "--implementations", "dense compiled", "--precision")
    warm = ("--output-dir", str(scratch / "warm"))
    scene = f"--data {data / 'fox-270x480'} --max-num-iterations {min(60, sizes.steps)} {sizes.scene}"
    image = f"--max-num-iterations {min(120, sizes.steps)} {sizes.image}"
    yield Part(
        "tests",
        130,
        ("-m", "pytest", "-v", "--tb=short", "-n", str(sizes.processes), "-p", "no:cacheprovider",
         "--continue-on-collection-errors", *sizes.tests, *TESTS),
        beside=[
            *((*compiled, precision) for precision in sizes.precisions),
            ns_train("loe-image", *image.split(), *warm)[1:],
            ns_train("loe-nerf", *scene.split(), *warm)[1:],
        ],
    )  # fmt: skip
    peers = ("--implementations", "loe", "dense", "dense compiled", "masked loop")
    for precision in sizes.precisions:
        yield step(out, f"step {precision}", sizes, precision, *full, *peers)
    for precision in sizes.precisions:
        yield step(
            out, f"evaluation {precision}", sizes, precision, "--what", "evaluate", "--points", str(sizes.camera)
        )
    target = f"loe-image {sizes.image} --target-psnr {sizes.target} --max-num-iterations {sizes.steps}"
    whole = f"loe-image {sizes.image} --max-num-iterations {sizes.steps}"
    picture = data / "kodim01.png"
    yield fits(out, "camera", 150, [
        target,  # the first pays for what is loaded at first use
        target,
        f"{whole}",
        f"{target} --precision bf16",
        f"{target} --precision bf16 --pipeline.datamanager.pixels-per-batch None",
        f"{target} --machine.seed 43",
        f"{whole} --precision bf16",
        f"{target} --precision {sizes.exact}",
    ])  # fmt: skip
    kodak = f"loe-image --data {picture} {sizes.image} --max-train-seconds {sizes.picture_seconds}"
    yield fits(out, "photograph", sizes.picture_seconds + 60, [kodak], needs=picture)
    small = ("--what", "step", "--points", str(sizes.batch), "--implementations", "loe", "dense", "dense compiled")
    yield step(out, "step of a usual batch", sizes, "tf32", *small)


def visit_b(out: Path, sizes: Sizes, data: Path, scratch: Path) -> Iterator[Part]:
    """Scenes beside nerfacto at equal seconds, then the kernels' blocks."""
    seconds, scene = sizes.scene_seconds, data / "fox-270x480"
    common = f"--data {scene} --max-train-seconds {seconds} --steps-per-eval-all-images 1000000"
    common += f" --pipeline.datamanager.train-num-rays-per-batch {sizes.rays}"
    runs = [f"loe-nerf {common} {sizes.scene}", f"baseline-nerfacto {common}"]
    yield fits(out, "scenes", 2 * seconds + 120, runs, needs=scene)
    for precision in sizes.precisions:
        words = ("--precision", precision, "--seconds", str(sizes.sweep_seconds), "--output", str(out / "blocks.csv"))
        yield Part(
            f"blocks {precision}",
            sizes.sweep_seconds + 40,
            ("-m", "benchmarks.kernel_blocks", *words, *sizes.sweep),
            environment={"TRITON_INTERPRET": sizes.interpreter},
        )


def visit_c(out: Path, sizes: Sizes, data: Path, scratch: Path) -> Iterator[Part]:
    """What comes after the first visit; one line for each part, in the order of their worth."""
    points = ("--points", str(sizes.batch), str(sizes.camera))
    layer = ("--repeats", str(sizes.repeats), *points, "--tile-size", "2", "8", "--output", str(out / "layer.csv"))
    series = f"loe-image --data {data / 'kodak'} {sizes.image} --max-train-seconds {sizes.many_seconds}"
    picture = ("--size", str(sizes.large), "--steps", str(sizes.large_steps), "--output-dir", str(scratch))
    yield Part("large picture", 200, ("-m", "benchmarks.large_picture", *picture, "--results", str(out / "fits.jsonl")))
    yield fits(out, "many pictures", 12 * (sizes.many_seconds + 15), [series], needs=data / "kodak")
    yield Part("layer bf16", 90, ("-m", "benchmarks.layer", "--precision", "bf16", *layer))
    yield Part("layer tf32", 90, ("-m", "benchmarks.layer", "--precision", "tf32", *layer))
    yield step(out, "network 3D", sizes, "bf16", "--dim", "3", "--points", str(sizes.camera))
    yield step(out, "network 64 experts", sizes, "bf16", "--tile-size", "8", "--points", str(sizes.camera))


def visit_d(out: Path, sizes: Sizes, data: Path, scratch: Path) -> Iterator[Part]:
    """What interpolated biases cost: the tests of their kernels, a step with and without, a grid alone, a scene."""
    yield Part("tests of tiles", 60, ("-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *sizes.tests,
                                      "tests/network/test_tile_kernels.py"))  # fmt: skip
    kinds = ("--implementations", "loe", "loe bias tiles", "loe grid")
    points = ("--what", "step", "--points", str(sizes.camera))
    yield step(out, "step with vectors 2D", sizes, "bf16", *points, *kinds)
    yield step(out, "step with vectors 3D", sizes, "bf16", *points, "--dim", "3", "--tile-size", "4", *kinds)
    words = ("--points", str(sizes.camera), "--dim", "3", "--table-size", str(2**15), str(2**19))
    words += ("--repeats", str(sizes.repeats), "--output", str(out / "grid.csv"))
    yield Part("grid", 60, ("-m", "benchmarks.grid", *words))
    scene = data / "fox-270x480"
    common = f"--data {scene} --max-train-seconds {sizes.scene_seconds / 4} --steps-per-eval-all-images 1000000"
    common += f" --pipeline.datamanager.train-num-rays-per-batch {sizes.rays} {sizes.scene}"
    runs = [f"loe-nerf {common}", f"loe-nerf {common} --pipeline.model.grid-levels 16"]
    yield fits(out, "scene with a grid", sizes.scene_seconds / 2 + 90, runs, needs=scene)


VISITS = {"a": (visit_a, 420), "b": (visit_b, 540), "c": (visit_c, 540), "d": (visit_d, 300)}
"""Parts and seconds of each visit."""


def small_scene(scene: Path, folder: Path) -> None:
    """A scene an eighth as large in both directions, with a third of its views."""
    content = json.loads((scene / "transforms.json").read_text("utf8"))
    content["frames"] = content["frames"][::3]
    for frame in content["frames"]:
        picture = folder / frame["file_path"]
        picture.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(scene / frame["file_path"]) as image:
            image.reduce(8).save(picture)
            size = picture_size = image.width, image.height
    small = tuple(-(-side // 8) for side in picture_size)
    for name, factor in (("fl_x", 0), ("cx", 0), ("fl_y", 1), ("cy", 1)):
        content[name] = content[name] * small[factor] / size[factor]
    content |= {"w": small[0], "h": small[1]}
    (folder / "transforms.json").write_text(json.dumps(content))


def small_data(data: Path, folder: Path) -> None:
    """The data of a rehearsal, made of what is in `data`."""
    if (data / "fox-270x480").is_dir():
        small_scene(data / "fox-270x480", folder / "fox-270x480")
    pictures = [path for path in (data / "kodim01.png", *sorted(data.glob("kodak/*.png"))[:2]) if path.is_file()]
    for path in pictures:
        with Image.open(path) as image:
            (folder / path.relative_to(data)).parent.mkdir(exist_ok=True)
            image.reduce(16).save(folder / path.relative_to(data))


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it has started: asked first, killed 8 s later."""
    for number, patience in ((signal.SIGTERM, 8.0), (signal.SIGKILL, 2.0)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.poll()


def run(part: Part, seconds: float, log: Path) -> tuple[str, str]:
    """Run a part for so long at most, all that it prints into the log; how it ended, and its last line."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"} | part.environment
    with open(log, "ab") as file, tempfile.TemporaryFile() as stdin, tempfile.TemporaryDirectory() as folder:
        file.write(f"\n==== {part.name}: python {' '.join(part.words)}\n".encode())
        file.flush()
        start = file.tell()
        stdin.write(part.stdin.encode())
        stdin.seek(0)
        others = []
        for number, words in enumerate(part.beside):
            output = open(Path(folder, str(number)), "wb")  # noqa: SIM115  (closed with the process)
            others.append(
                subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                                 stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            )  # fmt: skip
            output.close()
        process = subprocess.Popen([sys.executable, *part.words], cwd=ROOT, env=environment, stdin=stdin,
                                   stdout=file, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        until, status = time.monotonic() + seconds, "ok"
        try:
            for one in (process, *others):
                try:
                    one.wait(max(0.1, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    status = "time is up" if one is process else status
            if process.returncode:
                status = f"exit status {process.returncode}"
        finally:
            for one in (process, *others):
                end(one)
        printed = log.read_bytes()[start:].decode("utf8", "replace").splitlines()
        for number, (words, one) in enumerate(zip(part.beside, others)):
            told = Path(folder, str(number)).read_bytes()
            file.write(
                f"\n==== beside {part.name}: python {' '.join(words)}: exit status {one.returncode}\n".encode() + told
            )
            if one.returncode:
                print(f"    beside it, exit status {one.returncode}: {' '.join(words)[-80:]}", flush=True)
    if status != "ok":
        print("\n".join(f"    {line[:150]}" for line in printed[-15:]), flush=True)
    said = [line.strip() for line in printed if line.strip()]
    return status, said[-1][:150] if said else ""


def main() -> None:
    """Run the parts, note how they end, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("visit", choices=list(VISITS))
    parser.add_argument("seconds", nargs="?", type=float, help="of training of each scene of b, 120")
    parser.add_argument("--limit", type=float, help="seconds that all of it may take; 420 for a, 300 for d, else 540")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts by their first words")
    parser.add_argument("--data", type=Path, default=Path(".data"), help="has fox-270x480, kodim01.png and kodak")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on a CPU, to the last line")
    options = parser.parse_args()
    started = time.monotonic()
    parts, limit = VISITS[options.visit]
    limit = options.limit or (1e9 if options.rehearse else limit)
    out, data, sizes = (
        Path(os.environ["OUT"]).absolute(),
        options.data.absolute(),
        TINY if options.rehearse else Sizes(),
    )
    out.mkdir(parents=True, exist_ok=True)
    if options.seconds is not None:
        sizes = replace(sizes, scene_seconds=options.seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with tempfile.TemporaryDirectory() as folder:
            if options.rehearse:
                os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
                small_data(data, Path(folder))
                data = Path(folder)
            for part in parts(out, sizes, data, Path(folder)):
                if options.only and not part.name.startswith(tuple(options.only)):
                    continue
                began = time.monotonic()
                left = limit - (began - started) - LAST_SECONDS
                if part.needs is not None and not part.needs.exists():
                    status, said = "left out", f"there is no {part.needs}"
                elif left < 15:
                    status, said = "left out", f"{left:.0f} s are left"
                else:
                    status, said = run(
                        part, min(left, 20 * part.seconds if options.rehearse else part.seconds), out / "log.txt"
                    )
                took = time.monotonic() - began
                row = {"part": part.name, "seconds": f"{took:.0f}", "status": status, "last_line": said}
                with open(out / "parts.csv", "a", newline="") as file:
                    writer = csv.DictWriter(file, row, lineterminator="\n")
                    if not file.tell():
                        writer.writeheader()
                    writer.writerow(row)
                print(f"[{time.monotonic() - started:.0f} s] {part.name}: {status}, {took:.0f} s. {said}", flush=True)
    finally:
        from benchmarks.summary import summary

        text = summary(out)
        (out / "summary.txt").write_text(text)
        print(text)


if __name__ == "__main__":
    main()

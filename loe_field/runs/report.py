"""The report of a suite: results.csv, table.md, curves.png and a page of pictures, rewritten after every run."""

import csv
import html
import io
import os
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from loe_field.files import make_folder, write_each
from loe_field.runs.jobs import Outcome
from loe_field.runs.suite import Run, Suite
from loe_field.words import printable

_COLUMNS: dict[str, tuple[str, int | None]] = {
    "psnr": ("PSNR, final (dB)", 2),
    "psnr_best": ("PSNR, peak (dB)", 2),
    "psnr_unrounded": ("PSNR, unrounded (dB)", 2),
    "ssim": ("SSIM", 4),
    "psnr_half_pixel": ("PSNR, half-pixel grid (dB)", 2),
    "border_jump": ("jump at borders", 2),
    "psnr_held_out": ("PSNR, held out (dB)", 2),
    "num_parameters": ("parameters", None),
    "parameters_per_target": ("per target", 3),
    "macs_per_pixel": ("multiply-adds per pixel", None),
    "num_steps": ("steps", None),
    "train_seconds": ("seconds", None),
    "seconds_to_target": ("seconds to target", None),
}
"""Heading and decimals of a figure; None: no decimals if all are whole, else one."""

FIGURES = (
    *_COLUMNS,
    *("rays_per_second", "lpips", "num_views", "measured_on"),
    *("width", "height", "channels", "radiance_peak", "num_targets", "pixels_per_batch"),
    *("method", "data", "network", "implementation", "precision", "device", "seed", "target_psnr"),
    *("rays_per_batch", "steps_per_iteration", "num_processes"),
)
"""What metrics.json may have, and columns of a table may show."""


def write_report(folder: Path, suite: Suite, outcomes: Sequence[Outcome], searches: Sequence[Outcome]) -> None:
    """Write everything for the runs so far, each file whole or not at all.

    Raises:
        InputError: some cannot be written; the others are.
    """
    make_folder(folder)
    texts = {
        "results.csv": results_csv([*searches, *outcomes]),
        "table.md": table(suite, outcomes, searches),
        "index.html": page(folder, suite, outcomes),
    }
    writers: dict[Path, Callable[[Path], object]] = {
        folder / name: partial(Path.write_text, data=text, encoding="utf8") for name, text in texts.items()
    }
    plots = {"curves": (suite.title, suite.runs)}
    plots |= {f.name: (f.title, [run for run in suite.runs if run.name in f.runs]) for f in suite.figures}
    for name, (title, runs) in plots.items():
        writers[folder / f"{name}.png"] = partial(_save, curves(title, runs, outcomes))
    write_each(writers)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)


def results_csv(outcomes: Sequence[Outcome]) -> str:
    """One row a run: everything that metrics.json has, or its problem. Pictures are named without their folders."""
    rows = []
    for outcome in outcomes:
        job, metrics = outcome.job, outcome.metrics
        row = {
            "run": printable(job.run.name),
            "search_value": job.search_value,
            "picture": printable(Path(metrics.get("data", job.data or "")).name),
            "problem": printable(outcome.problem),
            "options": printable(" ".join(Path(word).name if word == str(job.data) else word for word in job.words)),
        }
        row |= {k: v for k, v in metrics.items() if not isinstance(v, dict) and k != "data"}
        row |= {f"version_{k}": v for k, v in metrics.get("versions", {}).items()}
        rows.append({**row, "seed": job.seed})
    file = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def table(suite: Suite, outcomes: Sequence[Outcome], searches: Sequence[Outcome]) -> str:
    """Markdown: a row per run, mean and half the spread over seeds and pictures."""
    lines = [f"# {printable(suite.title)}", "", *([suite.text.strip(), ""] if suite.text else [])]
    published = any(run.published for run in suite.runs)
    heads = [_COLUMNS.get(name, (name.replace("_", " "),))[0] for name in suite.columns]
    if suite.target_psnr and "seconds_to_target" in suite.columns:
        heads[suite.columns.index("seconds_to_target")] = f"seconds to {suite.target_psnr:g} dB"
    rows = [["", *(["published"] if published else []), *heads, "runs"]]
    for run in suite.runs:
        mine = [o for o in outcomes if o.job.run is run]
        done = [o for o in mine if o.metrics]
        failed = [o.problem for o in mine if o.problem]
        counts = str(len(done)) + (f", {len(failed)} failed: {failed[0]}" if failed else "")
        cells = [*(_cell(column, done, suite.target_psnr) for column in suite.columns), counts]
        if run.missing:
            cells = [run.missing, *[""] * len(suite.columns)]
        rows.append([run.name, *([run.published] if published else []), *cells])
    lines += _markdown(rows)
    if suite.search is not None:
        options = " and ".join(f"`{o}`" for o in suite.search.options)
        lines += ["", f"Search over {options} with seed {suite.search.seed}, final PSNR in dB:", ""]
        rows = [["", *(f"{v:g}" for v in suite.search.values)]]
        for run in suite.runs:
            mine = [o for o in searches if o.job.run is run and o.metrics]
            found = ([o for o in mine if o.job.search_value == value] for value in suite.search.values)
            rows.append([run.name, *(_cell("psnr", done) for done in found)])
        lines += _markdown(rows)
    where = {f"{m['device']}, torch {m['versions']['torch']}, {m['precision']}" for o in outcomes if (m := o.metrics)}
    told = [f"Seeds {', '.join(map(str, suite.seeds))}.", *([f"{'; '.join(sorted(where))}."] if where else [])]
    return "\n".join([*lines, "", " ".join(told), ""])


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first row is its heads."""
    lines = ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def _plain(cell: str) -> str:
    """The text of a cell: neither a line's end, nor a cell's, nor a tag of HTML, which Markdown lets through."""
    return printable(cell).replace("|", "\\|").replace("<", "&lt;")


def _drawn(text: str) -> str:
    """A name as matplotlib draws it, to which dollars would be mathematics."""
    return printable(text).replace("$", r"\$")


def _cell(column: str, done: Sequence[Outcome], target_psnr: float | None = None) -> str:
    values = [o.metrics.get(column) for o in done]
    if column == "seconds_to_target" and target_psnr is not None:
        reached = [[seconds for _, seconds, psnr in _curve(o.folder) if psnr >= target_psnr] for o in done]
        values = [float(seconds[0]) for seconds in reached] if all(reached) else []
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    if not numbers:
        return "" if not values or values[0] is None else str(values[0])
    digits = _COLUMNS.get(column, ("", None))[1]
    if digits is None:
        digits = 0 if all(v == int(v) for v in numbers) else 1
    spread = f" ± {(max(numbers) - min(numbers)) / 2:,.{digits}f}" if max(numbers) > min(numbers) else ""
    return f"{statistics.fmean(numbers):,.{digits}f}{spread}"


def curves(title: str, runs: Sequence[Run], outcomes: Sequence[Outcome]) -> Figure:
    """PSNR against steps and against seconds: a line per run, its seeds and pictures averaged."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for axes, column, label in zip(figure.subplots(1, 2, sharey=True), (0, 1), ("steps", "seconds")):
        for number, run in enumerate(runs):
            lines = [_curve(o.folder) for o in outcomes if o.job.run is run and o.metrics]
            lines = [finite for line in lines if len(finite := line[np.isfinite(line).all(1)])]
            if lines:
                mean = np.mean([line[: min(map(len, lines))] for line in lines], 0)
                # Neighbours in tab20 are shades of one colour: take the full ones first.
                colour = colours[(2 * number) % 20 + (number // 10) % 2]
                axes.plot(mean[:, column], mean[:, 2], label=_drawn(run.name), color=colour)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PSNR (dB)")
    if figure.axes[0].lines:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize="small", loc="outside right center")
    figure.suptitle(_drawn(title))
    return figure


def _curve(folder: Path) -> np.ndarray:
    """Step, seconds and PSNR (infinite for an exact picture) of every evaluation, [N, 3]."""
    with open(folder / "curve.csv", newline="") as file:
        rows = [[float(row[name]) for name in ("step", "seconds", "psnr")] for row in csv.DictReader(file)]
    return np.array(rows).reshape(-1, 3)


def page(folder: Path, suite: Suite, outcomes: Sequence[Outcome]) -> str:
    """HTML: reconstruction and error map of every run, or its first held-out views, with its PSNR."""
    title = html.escape(printable(suite.title))
    head = f'<!doctype html><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
    lines = [head, '<p><img src="curves.png" width="960"></p>']
    for outcome in [o for o in outcomes if o.metrics]:
        paths = [path for name in ("reconstruction.*", "error.png") for path in sorted(outcome.folder.glob(name))]
        paths += sorted(outcome.folder.glob("views/*.png"))[:2]
        images = "".join(f'<img src="{quote(os.fsencode(os.path.relpath(p, folder)))}" height="320">' for p in paths)
        caption = html.escape(printable(f"{outcome.job.label}: {outcome.metrics['psnr']:.2f} dB"))
        lines.append(f"<figure>{images}<figcaption>{caption}</figcaption></figure>")
    return "\n".join([*lines, ""])

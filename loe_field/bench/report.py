"""What a suite leaves behind: results.csv, table.md, curves.png and a page of pictures, rewritten after every run."""

import csv
import html
import io
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loe_field.bench.runner import Outcome
from loe_field.bench.suite import Suite
from loe_field.files import write_whole

_HEADS = {
    "psnr": "PSNR, final (dB)",
    "psnr_best": "PSNR, peak (dB)",
    "psnr_unrounded": "PSNR, unrounded (dB)",
    "ssim": "SSIM",
    "psnr_half_pixel": "PSNR, half-pixel grid (dB)",
    "border_jump": "jump at borders",
    "psnr_held_out": "PSNR, held out (dB)",
    "num_parameters": "parameters",
    "parameters_per_target": "per target",
    "macs_per_pixel": "multiply-adds per pixel",
    "num_steps": "steps",
    "rays_per_second": "rays per second",
    "train_seconds": "seconds",
    "seconds_to_target": "seconds to target",
}
_DIGITS = {
    "psnr": 2,
    "psnr_best": 2,
    "psnr_unrounded": 2,
    "psnr_half_pixel": 2,
    "ssim": 4,
    "border_jump": 2,
    "psnr_held_out": 2,
    "parameters_per_target": 3,
}


def write_report(folder: Path, suite: Suite, outcomes: Sequence[Outcome], searches: Sequence[Outcome]) -> None:
    """Write everything for the runs so far, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(folder / "results.csv") as path:
        path.write_text(results_csv([*searches, *outcomes]), "utf8")
    with write_whole(folder / "table.md") as path:
        path.write_text(table(suite, outcomes, searches), "utf8")
    with write_whole(folder / "curves.png") as path:
        curves(suite, outcomes).savefig(path, dpi=120)
    for figure in suite.figures:
        runs = [run for run in suite.runs if run.name in figure.runs]
        with write_whole(folder / f"{figure.name}.png") as path:
            curves(replace(suite, title=figure.title, runs=runs), outcomes).savefig(path, dpi=120)
    with write_whole(folder / "index.html") as path:
        path.write_text(page(folder, suite, outcomes), "utf8")


def results_csv(outcomes: Sequence[Outcome]) -> str:
    """One row a run, with everything that metrics.json has; a failed run is a row with its problem.

    Pictures are named without their folders, so that the file says the same wherever it was made.
    """
    rows = []
    for outcome in outcomes:
        job = outcome.job
        flat = {k: v for k, v in outcome.metrics.items() if not isinstance(v, dict) and k != "data"}
        flat |= {f"version_{k}": v for k, v in outcome.metrics.get("versions", {}).items()}
        picture = Path(outcome.metrics.get("data", job.data or "")).name
        options = [Path(word).name if word == str(job.data) else word for word in job.options]
        head = {"run": job.run.name, "search_value": job.search_value, "picture": picture, "problem": outcome.problem}
        rows.append({**head, "options": " ".join(options), **flat, "seed": job.seed})
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def table(suite: Suite, outcomes: Sequence[Outcome], searches: Sequence[Outcome]) -> str:
    """Markdown: a row per run, mean and half the spread over seeds and pictures."""
    lines = [f"# {suite.title}", "", *([suite.text.strip(), ""] if suite.text else [])]
    published = any(run.published for run in suite.runs)
    names = _HEADS | ({"seconds_to_target": f"seconds to {suite.target_psnr:g} dB"} if suite.target_psnr else {})
    heads = [
        "",
        *(["published"] if published else []),
        *[names.get(c, c.replace("_", " ")) for c in suite.columns],
        "runs",
    ]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for run in suite.runs:
        mine = [o for o in outcomes if o.job.run is run]
        done = [o for o in mine if o.metrics]
        cells = [run.name, *([run.published] if published else [])]
        if run.missing:
            cells += [run.missing] + [""] * len(suite.columns)
        else:
            cells += [_cell(column, done, suite.target_psnr) for column in suite.columns]
            failed = [o.problem for o in mine if o.problem]
            cells.append(f"{len(done)}" + (f", {len(failed)} failed: {failed[0]}" if failed else ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if suite.search is not None:
        options = " and ".join(f"`{o}`" for o in suite.search.options)
        lines += ["", f"Search over {options} with seed {suite.search.seed}, final PSNR in dB:", ""]
        lines += ["| | " + " | ".join(f"{v:g}" for v in suite.search.values) + " |"]
        lines += ["|---" * (len(suite.search.values) + 1) + "|"]
        for run in suite.runs:
            cells = [
                _cell("psnr", [o for o in searches if o.job.run is run and o.job.search_value == v and o.metrics])
                for v in suite.search.values
            ]
            lines.append(f"| {run.name} | " + " | ".join(cells) + " |")
    where = {f"{m['device']}, torch {m['versions']['torch']}, {m['precision']}" for o in outcomes if (m := o.metrics)}
    told = [f"Seeds {', '.join(map(str, suite.seeds))}.", *([f"{'; '.join(sorted(where))}."] if where else [])]
    lines += ["", " ".join(told), ""]
    return "\n".join(lines)


def _cell(column: str, done: Sequence[Outcome], target_psnr: float | None = None) -> str:
    values = [o.metrics.get(column) for o in done]
    if column == "seconds_to_target" and target_psnr is not None:
        reached = [_seconds_to(target_psnr, o.folder) for o in done]
        values = reached if None not in reached else []
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    if not numbers:
        return "" if not values or values[0] is None else str(values[0])
    digits = _DIGITS.get(column, 0 if all(v == int(v) for v in numbers) else 1)
    spread = f" ± {(max(numbers) - min(numbers)) / 2:,.{digits}f}" if max(numbers) > min(numbers) else ""
    return f"{statistics.fmean(numbers):,.{digits}f}{spread}"


def curves(suite: Suite, outcomes: Sequence[Outcome]) -> Figure:
    """PSNR against steps and against seconds: a line per run, its seeds and pictures averaged."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    FigureCanvasAgg(figure)
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for axes, column, label in zip(figure.subplots(1, 2, sharey=True), (0, 1), ("steps", "seconds")):
        for number, run in enumerate(suite.runs):
            points = [_curve(o.folder) for o in outcomes if o.job.run is run and o.metrics]
            points = [p for p in points if len(p)]
            if not points:
                continue
            shortest = min(len(p) for p in points)
            mean = np.mean([p[:shortest] for p in points], 0)
            # Neighbours in tab20 are shades of one colour: take the full ones first.
            colour = colours[(2 * number) % 20 + (number // 10) % 2]
            axes.plot(mean[:, column], mean[:, 2], label=run.name, color=colour)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PSNR (dB)")
    if figure.axes[0].lines:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize="small", loc="outside right center")
    figure.suptitle(suite.title)
    return figure


def _seconds_to(target_psnr: float, folder: Path) -> float | None:
    """Seconds at the first evaluation that reached a PSNR; None if none did."""
    return next((seconds for _, seconds, psnr in _read_curve(folder) if psnr >= target_psnr), None)


def _read_curve(folder: Path) -> list[tuple[float, float, float]]:
    """Step, seconds and PSNR of every evaluation."""
    with open(folder / "curve.csv", newline="") as file:
        return [(float(row["step"]), float(row["seconds"]), float(row["psnr"])) for row in csv.DictReader(file)]


def _curve(folder: Path) -> np.ndarray:
    """Steps, seconds and PSNR, [N, 3]; without infinite ones."""
    points = np.array(_read_curve(folder)).reshape(-1, 3)
    return points[np.isfinite(points).all(1)]


def page(folder: Path, suite: Suite, outcomes: Sequence[Outcome]) -> str:
    """HTML: reconstruction and error map of every run, or its first held-out views, with its PSNR."""
    figures = []
    for outcome in outcomes:
        if not outcome.metrics:
            continue
        caption = f"{outcome.job.label}: {outcome.metrics['psnr']:.2f} dB"
        images = "".join(
            f'<img src="{html.escape(os.path.relpath(path, folder))}" height="320">'
            for path in (
                *sorted(outcome.folder.glob("reconstruction.*")),
                *outcome.folder.glob("error.png"),
                *sorted(outcome.folder.glob("views/*.png"))[:2],
            )
        )
        figures.append(f"<figure>{images}<figcaption>{html.escape(caption)}</figcaption></figure>")
    title = html.escape(suite.title)
    return (
        f'<!doctype html><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>\n'
        '<p><img src="curves.png" width="960"></p>\n' + "\n".join(figures) + "\n"
    )

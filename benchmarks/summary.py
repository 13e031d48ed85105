"""What a folder of results says, on one screen: `python -m benchmarks.summary FOLDER`."""

import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SIZE = ("what", "points", "dim", "tile_size", "precision")
BEST = 3
"""Cuts shown of each kernel and precision."""
KNOWN = ("parts.csv", "step.csv", "layer.csv", "blocks.csv")
MOST = 12
"""Rows shown of a table that is not known here."""
PROVENANCE = ("device", "driver", "torch", "triton", "loe_field", "commit", "date")


def aligned(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Some columns as text; what a row does not have is empty."""
    table = [list(columns), *([str(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in table)


def rows_of(path: Path) -> list[dict[str, str]]:
    """A CSV's rows; none if it is not there."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def number(value: Any, digits: int) -> str:
    """A number with so many digits behind the point; empty for None and text."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else ""


def speed(rows: list[dict[str, str]]) -> str:
    """Medians in ms, in times of the dense network compiled, TFLOP/s, GB/s, and in times of the floor."""
    shown, sizes = [], [name for name in SIZE if any(name in row for row in rows)]
    compiled = {tuple(row.get(name) for name in SIZE): row["median_ms"] for row in rows
                if row["implementation"] == "dense compiled" and row["median_ms"]}  # fmt: skip
    for row in rows:
        base, ms = compiled.get(tuple(row.get(name) for name in SIZE)), row["median_ms"]
        figures = {"ms": ms, "times floor": row["times_floor"], "GB/s": row["gb_per_s"], "MiB": row["peak_mib"]}
        if ms:
            figures["TFLOP/s"] = f"{float(row['gflop_per_s']) / 1e3:.1f}"
        if ms and base:
            figures["times compiled"] = f"{float(ms) / float(base):.2f}"
        shown.append(row | figures | {"note": row["note"][:60]})
    columns = ("ms", "times compiled", "TFLOP/s", "GB/s", "times floor", "MiB", "note")
    return aligned(shown, ("implementation", *sizes, *columns))


def fits(path: Path) -> str:
    """What each run reached, and after how long."""
    shown = []
    for line in path.read_text("utf8").splitlines():
        row = json.loads(line)
        shown.append(
            {
                "PSNR": number(row.get("psnr"), 2),
                "SSIM": number(row.get("ssim"), 4),
                "steps": row.get("num_steps", ""),
                "s": number(row.get("train_seconds"), 2),
                "s to target": number(row.get("seconds_to_target"), 2),
                "wall s": number(row.get("wall_seconds"), 0),
                "rays/s": number(row.get("rays_per_second"), 0),
                "precision": row.get("precision", ""),
                "run": re.sub(r"(?<=--)pipeline\.\w+\.|\S*/", "", row["arguments"])[:100],
                "problem": row.get("problem", "")[:60],
            }
        )
    columns = [name for name in shown[0] if name in ("PSNR", "run") or any(row[name] for row in shown)] if shown else []
    return aligned(shown, columns)


def blocks(rows: list[dict[str, str]]) -> str:
    """The fastest cuts of each kernel and precision, and the one that its table has."""
    shown = []
    for key in dict.fromkeys((row["precision"], row["kernel"]) for row in rows):
        of = [row for row in rows if (row["precision"], row["kernel"]) == key]
        timed = sorted((row for row in of if row["microseconds"]), key=lambda row: float(row["microseconds"]))
        own = [row for row in of if row["cut"] == "own" and row not in timed[:BEST]]
        shown += [*timed[:BEST], *own]
    names = ("kernel", "precision", "cut", "block_rows", "warps", "stages", "programs", "microseconds", "gb_per_s")
    return aligned(({**row, "note": row["note"][:60]} for row in shown), (*names, "note"))


def summary(folder: Path) -> str:
    """All tables of a folder."""
    texts = []
    if rows := rows_of(folder / "parts.csv"):
        texts.append(aligned(({**row, "last_line": row["last_line"][:90]} for row in rows), list(rows[0])))
    for name in ("step.csv", "layer.csv"):
        if rows := rows_of(folder / name):
            texts.append(f"{name}: {rows[0]['device']}, {rows[0]['commit']}\n{speed(rows)}")
    if (folder / "fits.jsonl").is_file():
        texts.append(fits(folder / "fits.jsonl"))
    if rows := rows_of(folder / "blocks.csv"):
        texts.append(f"the best cuts\n{blocks(rows)}")
    for path in sorted(folder.glob("*.csv")):
        if path.name not in KNOWN and (rows := rows_of(path)):
            names = [name for name in rows[0] if name not in PROVENANCE]
            texts.append(f"{path.name}\n{aligned(rows[:MOST], names)}")
    return "\n\n".join(texts) + "\n"


if __name__ == "__main__":
    print(summary(Path(sys.argv[1])), end="")

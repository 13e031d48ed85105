"""The table of speed in docs/results/speed.md, made from results/step.csv.

python -m benchmarks.table            # writes it into docs/results/speed.md
python -m benchmarks.table --check    # fails if that page says something else
"""

import argparse
import csv
import sys
from pathlib import Path

HERE = Path(__file__).parent
BEGIN, END = "<!-- made by benchmarks/table.py -->\n", "<!-- end -->"
NAMES = {"loe": "**loe_field**", "loe torch": 'loe_field, `implementation="torch"`', "masked loop": "loop over masks"}


def table(rows: list[dict[str, str]]) -> str:
    """One line per implementation, one column per measurement: median ms, and its ratio to the dense eager network."""
    keys = ("what", "points", "dim", "tile_size", "precision", "device")
    columns: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if not row["median_ms"]:  # it was not timed
            continue
        cell = f"{float(row['median_ms']):.1f} ({float(row['times_dense']):.2f})"
        columns.setdefault(tuple(row[k] for k in keys), {})[row["implementation"]] = cell
    heads = []
    for what, points, dim, tile_size, precision, device in columns:
        experts = int(tile_size) ** int(dim)
        heads.append(f"{what}, {int(points):,} points, {dim}D, {experts} experts, {precision}, {device}")
    names = list(dict.fromkeys([*NAMES, *(name for column in columns.values() for name in column)]))
    lines = ["| | " + " | ".join(NAMES.get(name, name) for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for head, column in zip(heads, columns.values()):
        lines.append(f"| {head} | " + " | ".join(column.get(name, "") for name in names) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    page = HERE.parent / "docs" / "results" / "speed.md"
    text = page.read_text("utf8")
    with open(HERE / "results" / "step.csv", newline="") as file:
        made = table(list(csv.DictReader(file)))
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    if check and old != made:
        sys.exit(
            "error: docs/results/speed.md's table is not that of benchmarks/results: run python -m benchmarks.table"
        )
    if not check:
        page.write_text(before + BEGIN + made + END + after, "utf8")


if __name__ == "__main__":
    main()

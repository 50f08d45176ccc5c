"""Rows as tables: markdown, CSV, and the plain one that ends a run. No JAX."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec.runs import HEADLINE, choose, data_text, numbers
from jaxrec.statistics import estimate


def cell_text(value: Any) -> str:
    """A cell; a tuple is (middle, lower, upper bound)."""
    if isinstance(value, tuple):
        middle, low, high = map(cell_text, value)
        return middle if low == "-" else f"{middle} [{low}, {high}]"
    if isinstance(value, float):
        text = f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
        return text if np.isfinite(value) else "-"
    return str(value)


def aligned(rows: Sequence[Mapping[str, Any]], markdown: bool = True) -> str:
    """Rows of equal keys as a table; a tuple is (middle, lower, upper bound)."""
    cells = [list(rows[0]), *([cell_text(v) for v in row.values()] for row in rows)]
    if markdown:
        cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[c.ljust(w) for c, w in zip(line, widths)] for line in cells]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    lines.insert(1, ["-" * w for w in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; (middle, lower, upper) fill NAME, NAME_low, NAME_high."""
    flat = []
    for row in rows:
        out: dict[str, Any] = {}
        for name, value in row.items():
            ends = ("", "_low", "_high") if isinstance(value, tuple) else ("",)
            values = value if isinstance(value, tuple) else (value,)
            for end, v in zip(ends, values):
                out[name + end] = "" if isinstance(v, float) and np.isnan(v) else v
        flat.append(out)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def final_table(summary: Mapping[str, Any]) -> str:
    """A small plain-text table of a finished run's summary, for the terminal."""
    rows, notes = [], []
    parts = summary["stages"].values()
    # At the step that the validation set chose, where a stage has one.
    columns = ["last", "best", *["selected"] * any(p.get("selected") for p in parts)]
    for stage, part in summary["stages"].items():
        last = part.get("last") or {}
        rest = brief(choose(last.keys() - {HEADLINE}))
        for name in [HEADLINE, *rest] if HEADLINE in last else rest:
            row = {"stage": stage, "metric": name}
            for which in columns:
                values = (part.get(which) or {}).get(name, [])
                row[which] = estimate(np.array(numbers(values)))
            rows.append(row)
        facts = [f"{part.get('steps', '?')} steps"]
        for key, unit in (("seconds", "s"), ("steps_per_second", "steps/s")):
            facts += [f"{part[key]:.4g} {unit}"] if part.get(key) is not None else []
        if part.get("flops_per_second"):
            facts.append(f"{part['flops_per_second'] / 1e9:.4g} GFLOP/s")
        if part.get("utilisation"):
            facts.append(f"{part['utilisation']:.1%} of the devices' peak")
        if part.get("parameters"):
            facts.append(f"{part['parameters']:,} parameters")
        notes.append(f"{stage}: {', '.join(facts)}")
        if produced := part.get("produced"):
            means = {k: np.mean(numbers(v)) for k, v in produced.items()}
            text = ", ".join(f"{k} {cell_text(float(v))}" for k, v in means.items())
            notes.append(f"{stage} produced: {text}")
        if averaged := part.get("averaged"):
            text = f"the mean of {', '.join(averaged)}"
            notes.append(f"{stage}: {text}; python -m jaxrec.evaluate measures it")
    if summary.get("num_seeds", 1) > 1:
        notes.append(f"mean [95% interval] over {summary['num_seeds']} seeds")
    reference = (summary.get("data") or {}).get("reference")
    if reference and any(row["metric"] == HEADLINE for row in rows):
        low, high = cell_text(reference["random"]), cell_text(reference["expert"])
        notes.append(f"scores 0 and 100: {reference['source']}'s {low} and {high}")
    facts = [data_text(summary), summary.get("device")]
    notes.append(", ".join(str(fact) for fact in facts if fact))
    return "\n".join([aligned(rows, markdown=False) if rows else "", *notes]).strip()


def brief(names: Sequence[str]) -> list[str]:
    """Of many cut-offs the usual ones; `summary.json` and `--metrics` have them all.

    The horizons of a world model are all shown.
    """
    shown = ("ndcg@10", "hr@10", "coverage@10")
    return [
        name
        for name in names
        if not name.endswith("/count")
        and (
            "@" not in name
            or name.startswith("world/")
            or name.rsplit("/")[-1] in shown
        )
    ]

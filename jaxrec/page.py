"""An experiment as one HTML page that needs no other file: DIR/<experiment>.html.

The table with its intervals, learning curves with a band over seeds, how held-out
sessions fare where the runs keep ranks, where the config differs from those of the
other experiments of the report, and what it was run with. No JAX is imported.
"""

import html
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec import plots
from jaxrec.errors import UserError
from jaxrec.plots import write
from jaxrec.runs import Run, data_text, gains, in_order, rank_files, warn
from jaxrec.tables import brief, cell_text

PANELS = 12  # ours; curves on a page
STYLE = """
:root { --ink: #1b1f24; --soft: #656d76; --line: #d8dee4; --paper: #fff; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0;
  background: #f6f8fa; }
main { max-width: 1080px; margin: 2rem auto; padding: 1.5rem 2.5rem 3rem;
  background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line);
  padding-bottom: .3rem; }
p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; }
tbody tr { border-bottom: 1px solid var(--line); }
code, td.code { font: 13px/1.5 ui-monospace, monospace; }
svg { max-width: 100%; height: auto; }
summary { cursor: pointer; }
@media print { body { background: none; } main { border: none; margin: 0; } }
"""


Rows = Sequence[Mapping[str, Any]]


def write_pages(
    groups: Mapping[str, Sequence[Run]],
    rows: Rows,
    out: Path,
    compared: Sequence[Rows] = (),
) -> list[Path]:
    """A page for each experiment; `rows` are those of the report's table.

    `compared`: tables of all methods over tasks, which each page has.
    """
    paths: list[Path] = []
    names = [slug(label) for label in groups]
    for number, (label, runs) in enumerate(groups.items()):
        name = names[number]
        if names.count(name) > 1:  # labels that differ in signs alone
            name = f"{name}-{number + 1}"
        own = [row for row in rows if row["experiment"] == label]
        text = page(label, runs, own, groups, compared)
        paths.append(out / f"{name}.html")
        write(paths[-1], text.encode())
    return paths


def slug(label: str) -> str:
    """A file's name of at most 100 signs."""
    return re.sub(r"[^\w.=+-]+", "_", label).strip("_")[:100] or "experiment"


def page(
    label: str,
    runs: Sequence[Run],
    rows: Rows,
    groups: Mapping[str, Sequence[Run]],
    compared: Sequence[Rows] = (),
) -> str:
    """The whole document."""
    data = sorted({data_text(run.summary) for run in runs} - {""})
    parts = [
        f"<h1>{esc(label)}</h1>",
        f'<p class="soft">{esc(", ".join(data))}</p>',
        "<h2>Results</h2>",
        table([{k: v for k, v in r.items() if k != "experiment"} for r in rows]),
        '<p class="soft">Mean [95% Student t interval] over seeds.</p>',
    ]
    if compared := [table(found) for found in compared if found]:
        note = '<p class="soft">[95% stratified bootstrap interval] over tasks.</p>'
        parts += ["<h2>All methods over tasks</h2>", *compared, note]
    if curves := svg_of_curves(runs, [row["metric"] for row in rows]):
        parts += ["<h2>Learning curves</h2>", curves]
    if fares := svg_of_sessions(runs):
        parts += ["<h2>Held-out sessions</h2>", fares]
    parts += ["<h2>Configuration</h2>", *configuration(label, runs, groups)]
    parts += ["<h2>Runs</h2>", table([of_run(run) for run in runs])]
    parts += ["<h2>Environment</h2>", table(environment(runs))]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(label)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def esc(value: Any) -> str:
    return html.escape(str(value))


def table(rows: Rows) -> str:
    """Rows of equal keys; a tuple is (middle, lower, upper bound)."""
    if not rows:
        return '<p class="soft">None.</p>'
    head = "".join(f"<th>{esc(name)}</th>" for name in rows[0])
    lines = [
        "<tr>"
        + "".join(f"<td>{esc(cell_text(v))}</td>" for v in row.values())
        + "</tr>"
        for row in rows
    ]
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def svg(figure: Any) -> str:
    """A figure as an element of the page, its words as text."""
    from matplotlib import rc_context

    content = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxrec"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue()
    return text[text.index("<svg") :]


def svg_of_curves(runs: Sequence[Run], first: Sequence[str]) -> str:
    """A panel a metric: those of the table, then losses, then what else was measured.

    "" where there are no curves.
    """
    panels: dict[str, Any] = {}
    stages = list(dict.fromkeys(stage for run in runs for stage in run.curves))
    for stage in stages:
        names = {name for run in runs for name in run.curves.get(stage, {})}
        told = [n for n in first if n in names]
        losses = sorted(n for n in names if n.startswith("train/"))
        rest = [n for n in sorted(names, key=in_order) if n in brief(names)]
        for name in dict.fromkeys([*told, *losses, *rest, *sorted(names)]):
            line = plots.curve(runs, stage, name)
            if line is not None and len(line[0]) > 1:
                title = f"{stage} {name}" if len(stages) > 1 else name
                panels[title] = {"": line}
    if not panels:
        return ""
    shown = dict(list(panels.items())[:PANELS])
    figure = plots.figure_of(shown, columns=3)
    note = f"{len(panels) - len(shown)} more curves are in metrics.jsonl."
    more = f'<p class="soft">{note}</p>' if len(panels) > len(shown) else ""
    return svg(figure) + more


def svg_of_sessions(runs: Sequence[Run]) -> str:
    """How the mean NDCG@10 of a session is spread, of runs that keep their ranks.

    A mean hides whether all sessions are served a little or some well and others not.
    """
    found: dict[str, np.ndarray] = {}
    for run in runs:
        for stage, part in run.summary["stages"].items():
            kept = all(path.is_file() for path in rank_files(run, stage))
            if not kept or "test/ndcg@10" not in part["last"]:
                continue  # arrays that were cleaned up, or another kind of run
            try:
                gain, _, session = gains(run, stage, "test")
            except UserError as error:
                warn(f"{error}; its sessions are left out")
                continue
            code = np.unique(session, return_inverse=True)[1].reshape(-1)
            mean = np.bincount(code, gain.mean(0)) / np.bincount(code)
            label = stage if len(run.summary["stages"]) > 1 else ""
            found.setdefault(label, np.zeros(0))
            found[label] = np.concatenate([found[label], mean])
    if not found:
        return ""
    from matplotlib.figure import Figure

    figure = Figure((10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, means in found.items():
        left.hist(means, np.linspace(0, 1, 26), alpha=0.6, label=name)
        share = np.arange(1, len(means) + 1) / len(means)
        right.plot(share, np.sort(means), label=name)
    left.set(xlabel="mean NDCG@10 of a session", ylabel="sessions")
    right.set(xlabel="share of the sessions", ylabel="at most this mean NDCG@10")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    if list(found) != [""]:
        right.legend(frameon=False)
    lines = [
        f"{name} {len(means):,} sessions (of all runs; of seeds the mean), no event in "
        f"the top 10 in {np.mean(means == 0):.0%} of them; median "
        f"{np.median(means):.3f}, best tenth above {np.quantile(means, 0.9):.3f}"
        for name, means in found.items()
    ]
    return svg(figure) + "".join(f'<p class="soft">{esc(line)}</p>' for line in lines)


def configuration(
    label: str, runs: Sequence[Run], groups: Mapping[str, Sequence[Run]]
) -> list[str]:
    """What differs from the other experiments of the report, and all fields, folded."""
    own = fields(runs[0].config)
    others = {k: fields(g[0].config) for k, g in groups.items() if k != label}
    names = sorted({name for config in (own, *others.values()) for name in config})
    differ = [
        dict(field=name, here=own.get(name, "-"))
        | {k: config.get(name, "-") for k, config in others.items()}
        for name in names
        if any(config.get(name) != own.get(name) for config in others.values())
    ]
    parts = []
    if others:
        parts += [
            "<p>Fields that differ from the other experiments:</p>",
            table(differ),
        ]
    whole = table([dict(field=name, value=own[name]) for name in sorted(own)])
    count = f"<summary>All {len(own)} fields</summary>"
    return [*parts, f"<details>{count}{whole}</details>"]


def fields(config: Mapping[str, Any]) -> dict[str, str]:
    """Of an experiment: without the seeds and the folders of single runs.

    The section of a stage's method is called METHOD, so that those of two methods can
    be compared.
    """
    drop = ("seed", "num_seeds", "workdir")
    sections = {
        f"{name.removesuffix('method')}{value}.": name.removesuffix("method")
        for name, value in config.items()
        if name.endswith(".method")
    }
    found = {}
    for name, value in config.items():
        for section, stage in sections.items():
            if name.startswith(section):
                name = f"{stage}METHOD.{name.removeprefix(section)}"
        if name not in drop:
            found[name] = json.dumps(value)
    return found


def of_run(run: Run) -> dict[str, Any]:
    """A line of the table of runs."""
    parts = run.summary["stages"].values()
    seconds = [part["seconds"] for part in parts if part.get("seconds") is not None]
    return dict(
        folder=run.path.name,
        seed=run.config.get("seed", "-"),
        seeds=run.config.get("num_seeds", 1),
        seconds=float(sum(seconds)) if seconds else "-",
        parameters=sum(part.get("parameters") or 0 for part in parts) or "-",
        finished="yes" if run.done else "no",
        revision=(run.summary.get("revision") or "-")[:12],
    )


def environment(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Devices, versions and facts of the data; several values where runs differ."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        facts = {"device": run.summary.get("device")}
        facts |= run.summary.get("versions") or {}
        data = run.summary.get("data") or {}
        facts |= {f"data {k}": v for k, v in data.items() if k != "protocol"}
        for name, value in facts.items():
            if value not in (None, ""):
                found.setdefault(name, {})[cell_text(value)] = None
    return [dict(what=name, value=", ".join(values)) for name, values in found.items()]

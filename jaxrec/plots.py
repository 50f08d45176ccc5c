"""Learning curves of one run and of experiments, as PNG files."""

import io
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.runs import HEADLINE, Run, choose, data_text, experiments, read_run
from jaxrec.statistics import interval

BINS = 200  # ours; a longer curve is averaged in this many bins before drawing
PANELS = 9  # ours; plots in one picture of `plot_run`


def curve(
    runs: Iterable[Run], stage: str, metric: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(steps [P], mean [P], half width of the 95% interval [P]) over all seeds.

    Over the steps that all seeds cover, interpolated where their log steps differ;
    None when there are none.
    """
    seeds = []
    for run in runs:
        points = run.curves.get(stage, {}).get(metric, {})
        values = list(itertools.zip_longest(*points.values(), fillvalue=np.nan))
        seeds += [(list(points), column) for column in values]
    if not seeds:
        return None
    first, last = max(s[0] for s, _ in seeds), min(s[-1] for s, _ in seeds)
    union = sorted({step for s, _ in seeds for step in s if first <= step <= last})
    if not union:
        return None
    values = np.stack([np.interp(union, s, column) for s, column in seeds])
    bins = np.array_split(np.arange(len(union)), min(len(union), BINS))
    steps = np.array([np.mean(np.take(union, b)) for b in bins])
    return steps, *interval(np.stack([values[:, b].mean(1) for b in bins], 1))


def draw(panels: Mapping[str, Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Panel title -> line label -> `curve`, as a PNG of 1200x800 pixels."""
    content = io.BytesIO()
    figure_of(panels, title, size=(12, 8)).savefig(content, format="png")
    write(path, content.getvalue())


def figure_of(
    panels: Mapping[str, Mapping[str, Any]],
    title: str = "",
    columns: int = 0,
    size: tuple[float, float] | None = None,
) -> Any:
    """`draw`'s figure; `columns` 0: about a square, `size` None: by the panels."""
    from matplotlib import colormaps, ticker
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colours = colormaps["tab10"].colors
    columns = columns or int(np.ceil(np.sqrt(len(panels))))
    rows = -(-len(panels) // columns)
    size = size or (10, 2.6 * rows)
    figure = Figure(size, dpi=100, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (panel, lines) in zip(grid, panels.items()):
        for name, (steps, mean, half) in lines.items():
            n = names.index(name)
            style = dict(color=colours[n % 10], linestyle=("-", "--", ":")[n // 10 % 3])
            marker = "o" if len(steps) < 15 else None
            axes.plot(steps, mean, label=name, marker=marker, lw=2, ms=4, **style)
            axes.fill_between(
                steps, mean - half, mean + half, color=style["color"], alpha=0.15, lw=0
            )
        means = np.concatenate([mean for _, mean, _ in lines.values()])
        means = means[np.isfinite(means)]
        loss = "loss" in f"{panel} {title}"
        if loss and len(means) and 0 < 100 * means.min() < means.max():
            axes.set_yscale("log", nonpositive="clip")
        axes.set_title(panel, fontsize=11)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.remove()
    seeds = any(np.isfinite(h).any() for p in panels.values() for _, _, h in p.values())
    figure.suptitle(f"{title} (mean, 95% interval over seeds)" if seeds else title)
    if names != [""]:
        handles = {}
        for axes in figure.axes:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels())))
        wide = max(map(len, names))
        figure.legend(
            handles.values(),
            handles,
            loc="outside lower center",
            ncols=max(1, min(len(names), 150 // (wide + 6))),
            frameon=False,
        )
    return figure


def write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.rename(path)


def file_name(metric: str) -> str:
    return re.sub(r"[^\w.@=+-]+", "_", metric) + ".png"


def plot_run(workdir: str | os.PathLike) -> list[Path]:
    """Curves of one run, with a band over its seeds: WORKDIR/plots/<stage>.png.

    Held-out metrics first, then the rest; beyond nine panels <stage>-2.png and so on,
    but of a stage of one step: dots of hundreds of metrics are no curves.
    Where recall was measured by lag, WORKDIR/plots/recall_by_lag.png.
    """
    run, paths = read_run(Path(workdir)), []
    for stage, metrics in run.curves.items():
        names = choose(metrics.keys() - {HEADLINE})
        names = [n for n in (HEADLINE, *names, *sorted(metrics)) if n in metrics]
        lines = {n: curve([run], stage, n) for n in dict.fromkeys(names)}
        drawn = [(n, {"": line}) for n, line in lines.items() if line is not None]
        if all(len(line[""][0]) == 1 for _, line in drawn):
            drawn = drawn[:PANELS]
        for page, start in enumerate(range(0, len(drawn), PANELS), 1):
            name = f"{stage}.png" if page == 1 else f"{stage}-{page}.png"
            paths.append(run.path / "plots" / name)
            title = (
                f"{run.config.get('name', '')} {stage} {data_text(run.summary)}".strip()
            )
            draw(dict(drawn[start : start + PANELS]), paths[-1], title)
    if lags := recall(run):
        paths.append(run.path / "plots" / "recall_by_lag.png")
        draw_recall(lags, paths[-1], f"{run.config.get('name', '')}: recall by lag")
    return paths


def recall(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Stage -> (lags [P], mean [P], half width of the 95% interval [P]) of the last
    `test/lag_K/hr@10`, K > 0; see `recommender_evaluators.recall_by_lag`."""
    found = {}
    for stage, metrics in run.curves.items():
        values = {}
        for name, points in metrics.items():
            lag = re.fullmatch(r"test/lag_(\d+)/hr@10", name)
            if lag and int(lag[1]):
                values[int(lag[1])] = list(points.values())[-1]
        if values:
            lags = sorted(values)
            seeds = np.array([values[lag] for lag in lags], float).T
            found[stage] = (np.array(lags), *interval(seeds))
    return found


def draw_recall(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    path: Path,
    title: str = "",
) -> None:
    """HR@10 against lag, a line a stage, as a PNG of 1200x800 pixels."""
    from matplotlib import colormaps, ticker
    from matplotlib.figure import Figure

    figure = Figure((12, 8), dpi=100, layout="constrained")
    axes = figure.subplots()
    for (name, (lags, mean, half)), colour in zip(
        lines.items(), itertools.cycle(colormaps["tab10"].colors)
    ):
        axes.plot(lags, mean, label=name, marker="o", lw=2, color=colour)
        axes.fill_between(lags, mean - half, mean + half, color=colour, alpha=0.15)
    axes.axhline(0.9, color="grey", lw=1, ls="--")  # what counts as solved
    ticks = sorted({int(lag) for lags, _, _ in lines.values() for lag in lags})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{lag:,}" for lag in ticks])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("events between an item and its recall")
    axes.set_ylabel("HR@10 of the recalls, all items ranked")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.set_title(title)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write(path, content.getvalue())


def plot_metric(runs: Sequence[Run], metric: str, task: str, path: Path) -> None:
    """Learning curves, a line an experiment; a panel a task and stage if several."""
    several = len({str(run.config.get(task)) for run in runs}) > 1
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for label, group in experiments(runs, (task,) if several else ()).items():
        cells: dict[tuple[str, str], list[Run]] = {}
        for run in group:
            for stage in run.curves:
                name = str(run.config.get(task)) if several else ""
                cells.setdefault((name, stage), []).append(run)
        for cell, members in cells.items():
            if (line := curve(members, cell[1], metric)) is not None:
                lines.setdefault(cell, {})[label] = line
    stages = {stage for _, stage in lines}
    titles = {c: f"{c[0]} {c[1] if len(stages) > 1 else ''}".strip() for c in lines}
    if lines:
        cells = sorted(lines, key=lambda cell: cell[0])  # stages keep their order
        draw({titles[cell]: lines[cell] for cell in cells}, path, metric)

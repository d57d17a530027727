"""The benchmark of retrieval: how much is found, and how fast among many rows, beside the guide's way in the same run.

python -m tests.benchmarks.retrieval                 # quality, and scale at 100,000 rows: about 15 minutes
python -m tests.benchmarks.retrieval --quality       # quality alone: a minute
python -m tests.benchmarks.retrieval --rows 1000000  # hours, 20 GB of disk and 12 GB of memory
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.local import postgres
from infra.local.parts import ROOT
from infra.local.stack import Stack
from tests.benchmarks.retrieval import quality, scale
from tests.benchmarks.retrieval.quality import EvaluationSet, Question, Scores
from tests.benchmarks.retrieval.scale import Measures

OUTPUT = ROOT / ".local/bench"
PLAIN_TEXT = ("full text alone, every word", "full text alone, any word")
MEGABYTE = 1024 * 1024
WIDTH = 160  # of a log or a file
Lines = Mapping[str, Measures]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.retrieval", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the scale part (default: 100000)")
    parser.add_argument("--quality", action="store_true", help="leave the scale part out")
    arguments = parser.parse_args()
    if arguments.rows < 10_000:
        parser.error("--rows: at least 10000")

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=OUTPUT) as folder, _progress(console) as progress:
        try:
            with Stack(Path(folder), only={"postgres", "lite"}, preferred_ports={}) as stack:
                figures = _run(stack.database_url, arguments.rows, arguments.quality, console, progress)
        finally:
            postgres.remove(Path(folder))
    file = OUTPUT / "retrieval.json"
    file.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(f"Also in {file.relative_to(ROOT)}.")
    return 0


def _run(url: str, rows: int, only_quality: bool, console: Console, progress: Progress) -> dict[str, Any]:
    task = progress.add_task("starting", total=1.0)

    def report(step: str, part: float) -> None:
        progress.update(task, description=step, completed=part)

    with psycopg.connect(url, autocommit=True) as database:
        database.execute("set maintenance_work_mem = '2GB'")
        evaluation = quality.read(OUTPUT, report)
        quality.load(database, evaluation)
        scores = quality.measure(database, evaluation.questions, report)
        abstained = quality.abstentions(database, evaluation.questions)
        console.print(_quality_table(scores, evaluation.questions), _abstention(abstained))
        figures = _quality_figures(scores, abstained)
        if only_quality:
            return figures
        lines, growth = _scale(database, url, rows, evaluation, report)
    console.print(_scale_table(lines, rows))
    _plot(growth, OUTPUT / "retrieval.svg")
    console.print("How latency grows: .local/bench/retrieval.svg")
    return figures | _scale_figures(lines) | {"rows": rows, "growth": growth}


def _scale(
    database: psycopg.Connection, url: str, rows: int, evaluation: EvaluationSet, report: scale.Progress
) -> tuple[Lines, dict[str, dict[int, float]]]:
    """The lines of the table, and by way of searching the median milliseconds at each number of rows."""
    made = scale.corpus(
        evaluation.vectors,
        [passage["content"] for passage in evaluation.passages],
        np.stack([question.vector for question in evaluation.questions]),
        [question.text for question in evaluation.questions],
        rows,
    )
    scale.fill(database, made, report)
    lines: dict[str, Measures] = {}
    growth: dict[str, dict[int, float]] = {"exact scan": {}, "ours": {}, "ours, with words": {}}
    database.execute("truncate public.finance_knowledge")
    for size in _sizes(rows):
        report(f"exact scan of {size:,} rows", 0.1)
        lines["exact scan"] = scale.measure_exact(url, made, size)
        report(f"ours at {size:,} rows", 0.3)
        lines["ours"], lines["ours, with words"] = scale.measure_ours(database, url, made, size)
        for name in growth:
            growth[name][size] = lines[name].p50_ms
    for place, (name, index, is_built_first) in enumerate(
        (
            ("ivfflat, built first (the guide)", scale.IVFFLAT, True),
            ("ivfflat, built after", scale.IVFFLAT, False),
            ("HNSW, full precision, defaults", scale.FULL_HNSW, False),
        )
    ):
        report(name, 0.5 + place / 6)
        lines[name] = scale.measure_guide(database, url, made, index, is_built_first=is_built_first)
    return lines, growth


def _sizes(rows: int) -> list[int]:
    return [size for size in (10_000, 30_000, 100_000, 300_000, 1_000_000) if size < rows] + [rows]


def _quality_table(scores: Mapping[str, Scores], questions: Sequence[Question]) -> Table:
    kinds = next(iter(scores.values())).by_kind
    title = f"Quality: {len(questions)} questions; nDCG@10 by kind on the right"
    table = Table("", "recall@5", "MRR@10", "nDCG@10", *kinds, title=title, title_justify="left")
    for name, score in scores.items():
        figures = (score.recall5, score.mrr10, score.ndcg10, *score.by_kind.values())
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    return table


def _abstention(shares: Mapping[str, float]) -> str:
    return (
        f"At its threshold ours finds nothing for {shares['ours_unanswerable']:.0%} of the questions without an answer"
        f" (the guide's 0.7: {shares['guide_unanswerable']:.0%}), and for {shares['ours_answerable']:.0%} of the others"
        f" ({shares['guide_answerable']:.0%}).\n"
    )


def _scale_table(lines: Lines, rows: int) -> Table:
    heads = (
        "recall@10",
        "p50 ms",
        "p95 ms",
        "QPS",
        "x exact",
        "1 %: recall@10",
        "rows of 10",
        "p50 ms",
        "build s",
        "MB",
    )
    title = f"Scale: {rows:,} rows of 1536 dimensions; on the right with a filter that 1 % of them pass"
    table = Table("", *heads, title=title, title_justify="left")
    exact = lines["exact scan"].queries_per_second
    for name, line in lines.items():
        table.add_row(
            name,
            _share(line.recall),
            f"{line.p50_ms:.1f}",
            f"{line.p95_ms:.1f}",
            f"{line.queries_per_second:.1f}",
            f"{line.queries_per_second / exact:.1f}",
            _share(line.recall_filtered),
            f"{line.found_filtered:.1f}",
            f"{line.p50_filtered_ms:.1f}",
            f"{line.build_seconds:.0f}",
            f"{line.index_bytes / MEGABYTE:.0f}",
        )
    return table


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"


def _quality_figures(scores: Mapping[str, Scores], abstained: Mapping[str, float]) -> dict[str, Any]:
    hybrid = scores["hybrid"]
    return {
        "hybrid_ndcg10": hybrid.ndcg10,
        "vector_ndcg10": scores["vector alone (the guide)"].ndcg10,
        "text_ndcg10": max(scores[name].ndcg10 for name in PLAIN_TEXT),
        "words_ndcg10": scores["our words alone"].ndcg10,
        "second_stage_ndcg10": scores["hybrid, then MMR 0.2"].ndcg10,
        "hybrid_recall5": hybrid.recall5,
        "hybrid_mrr10": hybrid.mrr10,
        "abstained": dict(abstained),
    }


def _scale_figures(lines: Lines) -> dict[str, Any]:
    ours, full = lines["ours"], lines["HNSW, full precision, defaults"]
    return {
        "recall10_unfiltered": ours.recall,
        "recall10_filtered": ours.recall_filtered,
        "ivfflat_recall10": lines["ivfflat, built after"].recall,
        "ivfflat_built_first_recall10": lines["ivfflat, built first (the guide)"].recall,
        "qps_ours": ours.queries_per_second,
        "qps_exact": lines["exact scan"].queries_per_second,
        "p50_ms_ours": ours.p50_ms,
        "p95_ms_ours": ours.p95_ms,
        "index_bytes_ours": ours.index_bytes,
        "index_bytes_full": full.index_bytes,
    }


def _plot(growth: Mapping[str, Mapping[int, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, medians in growth.items():
        axes.loglog(list(medians), list(medians.values()), marker="o", label=name)
    axes.set(title="How latency grows", xlabel="rows of 1536 dimensions", ylabel="median milliseconds of a search")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(file)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


if __name__ == "__main__":
    sys.exit(main())

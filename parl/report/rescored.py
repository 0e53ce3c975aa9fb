"""The tables of `parl rescore`: terms, steps, and the episodes that change most."""

from __future__ import annotations

import sys

from parl.evaluation.rescore import RescoredEpisodes, Summary

NUM_STEPS = 12
"""Rows of the table of steps. Of more steps it shows this many, at equal distances."""
NUM_EPISODES = 5


def print_rescored(result: RescoredEpisodes) -> None:
    """Print the terms, the steps, and the episodes that change most."""
    from rich.console import Console
    from rich.table import Table

    # In a file or a pipe there is no width to ask for; rich would cut the tables at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 150)
    total = result.total
    console.print(f"{result.run} under {result.config}", highlight=False, soft_wrap=True)

    terms = Table(title="What a term adds to the reward")
    terms.add_column("term", justify="left")
    terms.add_column("stored", justify="right")
    terms.add_column("rescored", justify="right")
    for name, (old, new) in total.terms.items():
        terms.add_row(name, f"{old:.4f}", f"{new:.4f}")
    terms.add_row("reward", _number(total.reward_old, ".4f"), _number(total.reward_new, ".4f"))
    console.print(terms)

    steps = Table(title="What changes in the groups")
    titles = (
        "step",
        "reward",
        "rescored",
        "pairs reordered",
        "reversed",
        "best episode changes",
        "r",
        "r sub.",
    )
    for title in titles:
        steps.add_column(title, justify="right")
    for summary in _at_equal_distances(result.steps):
        steps.add_row(*_row(summary))
    steps.add_section()
    steps.add_row(*_row(total))
    console.print(steps)
    console.print(
        "r: correlation of the old with the new advantages, of orchestrators and of subagents."
    )

    if result.exact:
        console.print("Every reward and every advantage is the stored one, bit for bit.")
    for change in result.most_changed[:NUM_EPISODES]:
        console.print(
            f"{change.id}: reward {change.reward_old:.3f} -> {change.reward_new:.3f}, "
            f"rank in its group {change.rank_old} -> {change.rank_new}, "
            f"advantage {change.advantage_old:+.3f} -> {change.advantage_new:+.3f} "
            f"(step {change.step})",
            highlight=False,
        )
    if result.most_changed:
        console.print(f"Look at them with: parl view {result.run}", highlight=False)
    if total.num_failed:
        console.print(f"{total.num_failed} episodes had failed: they have no reward, then and now.")
    for note in result.notes:
        console.print(f"Note: {note}")


def _row(summary: Summary) -> list[str]:
    return [
        "all" if summary.step is None else str(summary.step),
        _number(summary.reward_old, ".3f"),
        _number(summary.reward_new, ".3f"),
        _number(summary.order_changed, ".1%"),
        _number(summary.order_reversed, ".1%"),
        f"{summary.best_changed} of {summary.num_groups}",
        _number(summary.advantage_correlation, ".3f"),
        _number(summary.subagent_correlation, ".3f"),
    ]


def _at_equal_distances(steps: tuple[Summary, ...]) -> list[Summary]:
    """Return at most NUM_STEPS of the steps, the first and the last among them."""
    if len(steps) <= NUM_STEPS:
        return list(steps)
    distance = (len(steps) - 1) / (NUM_STEPS - 1)
    indices = [round(k * distance) for k in range(NUM_STEPS)]
    return [steps[index] for index in indices]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

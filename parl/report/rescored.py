"""The tables of `parl rescore`: terms, steps, and the episodes that change most."""

from __future__ import annotations

import sys

from parl.evaluation.rescore import RescoredEpisodes, Summary

NUM_STEPS = 12
"""Most steps in the table; of more, an even choice."""
NUM_EPISODES = 5


def print_rescored(result: RescoredEpisodes) -> None:
    """Print the terms, the steps, and the episodes that change most."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    total = result.total
    console.print(f"{result.run} under {result.config}", highlight=False, soft_wrap=True)
    terms = Table(title="What a term adds to the reward")
    for title in ("term", "stored", "rescored"):
        terms.add_column(title, justify="left" if title == "term" else "right")
    for name, (old, new) in total.terms.items():
        terms.add_row(name, f"{old:.4f}", f"{new:.4f}")
    terms.add_row("reward", _number(total.reward_old, ".4f"), _number(total.reward_new, ".4f"))
    console.print(terms)

    steps = Table(title="What changes in the groups")
    for title in (
        "step",
        "reward",
        "rescored",
        "pairs reordered",
        "reversed",
        "best episode changes",
        "r",
        "r sub.",
    ):
        steps.add_column(title, justify="right")
    for row in _some(result.steps):
        steps.add_row(*_row(row))
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
            f"{change.id}: reward {change.reward_old:.3f} -> {change.reward_new:.3f}, rank in its group "
            f"{change.rank_old} -> {change.rank_new}, advantage {change.advantage_old:+.3f} -> "
            f"{change.advantage_new:+.3f} (step {change.step})",
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


def _some(steps: tuple[Summary, ...]) -> list[Summary]:
    """Evenly chosen, the first and the last among them."""
    if len(steps) <= NUM_STEPS:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (NUM_STEPS - 1))] for i in range(NUM_STEPS)]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

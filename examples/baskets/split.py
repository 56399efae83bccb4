"""Split purchases by time, and write both sides as Parquet.

    catalogue.parquet      the products that are recommended: a row each, as in the tables
    histories.parquet      a row for each household: what it bought before the cut
    next_baskets.parquet   a row for each household that came back within the four weeks
                           after the cut: what was in the first basket

What comes after the cut is in `next_baskets.parquet` alone.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

WEEKS_AFTER = 4
MIN_BASKETS = 20  # fewer say too little of what a product goes with
HALF_LIFE = 120  # days; README.md, "What was tried"


class Split(NamedTuple):
    """Purchases before the cut, and what was bought next; products by their row."""

    before: pd.DataFrame  # those of the catalogue, in the order of time
    catalogue: pd.DataFrame  # product, department, category, kind, baskets, lately
    histories: pa.Table  # household, products, weights
    next_baskets: pa.Table  # household, products
    cut: pd.Timestamp
    until: pd.Timestamp
    share_covered: float  # of the purchases before the cut, those of the catalogue


def split(purchases, products, cut):
    """Split at a time: a household's next basket is its first one from then on."""
    cut = pd.Timestamp(cut)
    is_before = purchases.time < cut
    until = cut + pd.Timedelta(weeks=WEEKS_AFTER)
    is_after = ~is_before & (purchases.time < until)

    n_baskets = purchases[is_before].groupby("product").basket.nunique()
    n_baskets = n_baskets[n_baskets >= MIN_BASKETS].sort_index()
    catalogue = products.loc[n_baskets.index].rename_axis("product").reset_index()
    catalogue["baskets"] = n_baskets.to_numpy()

    def in_catalogue(rows):
        rows = rows[rows["product"].isin(catalogue["product"])]
        return rows.assign(row=np.searchsorted(catalogue["product"], rows["product"]))

    before, after = in_catalogue(purchases[is_before]), in_catalogue(purchases[is_after])
    first = after.groupby("household").basket.transform("first")
    # A household without a history is no case for any of the ways compared.
    after = after[(after.basket == first) & after.household.isin(before.household)]
    is_late = before.time >= cut - pd.Timedelta(weeks=WEEKS_AFTER)
    catalogue["lately"] = np.bincount(before.row[is_late], minlength=len(catalogue))
    return Split(
        before=before,
        catalogue=catalogue,
        histories=lists_by_household(before, {"weights": weights(before, cut)}),
        next_baskets=lists_by_household(after, {}),
        cut=cut,
        until=until,
        share_covered=len(before) / is_before.sum(),
    )


def weights(rows, cut):
    """Return a weight for each purchase: 1 for one piece today, half as much for an old one.

    Twenty cans of soup say more than one, but not twenty times as much.
    """
    days = (cut - rows.time) / pd.Timedelta(days=1)
    return np.log2(1 + rows.quantity) * 0.5 ** (days / HALF_LIFE)


def lists_by_household(rows, values):
    """Return a row for each household, with its products and the values as lists."""
    order = np.argsort(rows.household, kind="stable")  # within a household: by time
    households, starts = np.unique(rows.household.to_numpy()[order], return_index=True)
    offsets = np.append(starts, len(rows)).astype(np.int32)

    def lists(items, dtype):
        return pa.ListArray.from_arrays(offsets, np.asarray(items, dtype)[order])

    columns = {"household": pa.array(households), "products": lists(rows.row, np.int32)}
    for name, items in values.items():
        columns[name] = lists(items, np.float32)
    return pa.table(columns)


def save(parts, folder):
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(parts.catalogue), folder / "catalogue.parquet")
    pq.write_table(parts.histories, folder / "histories.parquet")
    pq.write_table(parts.next_baskets, folder / "next_baskets.parquet")

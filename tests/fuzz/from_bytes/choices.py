"""Bytes as the choices of a random generator."""

import random


class ByteChoices(random.Random):
    """A generator whose numbers are the given bytes, and after their end those of a fixed seed."""

    def __init__(self, data):
        super().__init__(0)
        self._data = data
        self._at = 0

    def getrandbits(self, k):
        n_bytes = (k + 7) // 8
        if self._at + n_bytes > len(self._data):
            self._at = len(self._data)
            return super().getrandbits(k)
        number = int.from_bytes(self.rest(n_bytes), "little")
        return number & ((1 << k) - 1)

    def random(self):
        return self.getrandbits(16) / 2**16

    def rest(self, most):
        """Return the next bytes themselves."""
        taken = self._data[self._at : self._at + most]
        self._at += len(taken)
        return taken

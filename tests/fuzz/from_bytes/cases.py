"""The bytes choose a case of calls.py."""

from ..calls import case
from ..checked_call import run as run_case
from .choices import ByteChoices


def run(data):
    return run_case(case(ByteChoices(data)))

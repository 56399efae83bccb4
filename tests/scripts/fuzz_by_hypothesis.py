"""Draw cases of the fuzzer by hypothesis."""

import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1]))
from fuzz.calls import case
from fuzz.checked_call import run
from fuzz.child import prepare_process


@settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.randoms(use_true_random=False))
def run_cases(rng):
    run(case(rng))


prepare_process(eager=True)
run_cases()

"""The suite tries as many generated cases as the README says."""

import importlib
from pathlib import Path

from fuzz_cases import NUM_CASES


def test_there_are_ten_thousand() -> None:
    for path in Path(__file__).parent.glob("test_fuzz_*.py"):
        importlib.import_module(path.stem)
    assert sum(NUM_CASES.values()) >= 10_000
    assert len({name.split(".")[0] for name in NUM_CASES}) == 5

"""Corpora are the same in every process: nothing hangs on the order of a set."""

import os
import subprocess
import sys
from pathlib import Path

from corpus_checks import digest
from corpus_files import SMALL, small_corpus, write_corpus_files

SCRIPT = """
import sys
from pathlib import Path
from corpus_checks import digest
from corpus_files import SMALL, small_corpus
for name in SMALL:
    print(name, digest(small_corpus(name, Path(sys.argv[1]))))
"""


def test_examples_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    write_corpus_files(tmp_path)
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # anything but this process's
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    other = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
        capture_output=True,
        check=True,
        text=True,
    )
    here = [f"{name} {digest(small_corpus(name, tmp_path))}" for name in SMALL]
    assert other.stdout.splitlines() == here

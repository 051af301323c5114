"""The process of :class:`~mixsd_lightning.evaluation.math_answers.MathVerifier`, run as a script.

It reads a pair of answers, gold first, from each line, and writes ``true``, ``false`` or, where that cannot be decided,
``null``.
"""

import json
import sys


def main() -> None:
    """Answer until the input ends."""
    # The script's folder stands first; its modules must not be taken for installed ones of the same name.
    del sys.path[0]
    # Nothing but replies goes to the output.
    replies, sys.stdout = sys.stdout, sys.stderr
    from math_verify import parse, verify

    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        try:
            # The parent ends what takes too long.
            gold, answer = (
                parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True) for text in json.loads(line)
            )
            verdict = verify(gold, answer, timeout_seconds=None, raise_on_error=True)
        except Exception:  # whatever the computer algebra raises on what a model writes: the parent counts it
            verdict = None
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    main()

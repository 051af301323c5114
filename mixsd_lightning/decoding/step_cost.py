"""What a forward costs at how many tokens, and so when it pays to run a token that may not be needed."""

import time
from collections.abc import Sequence

from mixsd_lightning.decoding.attention_plan import Span
from mixsd_lightning.decoding.prefix_cache import PrefixCache

# From where the fixed price of a forward dominates to where hardly anything is saved by more tokens.
_MEASURED_LENGTHS = (8, 32, 128)

# Columns in front of a measured token.
_PROMPT = 64


class StepCost:
    """Seconds of a forward, linear between measured numbers of tokens and beyond them, constant before the first."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        """
        Args:
            points: Numbers of tokens, ascending, each with its seconds.
        """
        self._points = points

    @classmethod
    def linear(cls, tokens_per_step: float) -> "StepCost":
        """A fixed price worth this many tokens, and the same price for every token (0: no fixed price)."""
        return cls([(0.0, tokens_per_step), (1.0, tokens_per_step + 1.0)])

    @classmethod
    def measured(cls, cache: PrefixCache) -> "StepCost":
        """Measured on the model and the machine, with a cache that holds nothing yet."""

        def seconds(num_tokens: int) -> float:
            # As in the middle of a build: tokens of all rows, each behind a prompt, each asked what follows it.
            places = [divmod(index, cache.num_rows) for index in range(num_tokens)]
            spans = [Span(row, range(_PROMPT), [_PROMPT + depth], [0]) for depth, row in places]
            start = time.perf_counter()
            cache.forward(spans).cpu()
            return time.perf_counter() - start

        # The least of several: whatever else the machine does only adds to them.
        return cls([(length, min(seconds(length) for _ in range(2))) for length in _MEASURED_LENGTHS])

    def least_chance(self, num_tokens: int) -> float:
        """How likely a token must be needed for it to pay in a forward that has ``num_tokens`` already.

        Now it adds what one more token adds; later it costs its share of a forward.
        """
        if num_tokens < self._points[0][0]:
            return 0.0
        # The stretch that the forward is in, or the last.
        stretch = max(index for index, (tokens, _) in enumerate(self._points[:-1]) if index == 0 or tokens <= num_tokens)
        (start, seconds), (end, later) = self._points[stretch : stretch + 2]
        per_token = max(later - seconds, 0.0) / (end - start)
        whole = seconds + per_token * (num_tokens - start)
        return min(per_token * num_tokens / whole, 1.0)

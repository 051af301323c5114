"""All completions of one example that were begun, under its naive and its expert prompt, as one tree.

Attempts that begin alike share nodes, so what was computed for one is there for the next.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence

from mixsd_lightning.decoding.attention_plan import Span
from mixsd_lightning.decoding.mixing import EXPERT, NAIVE
from mixsd_lightning.decoding.sampling import Support


class Node:
    """A completion's prefix, told by its last token and its parent."""

    __slots__ = ("children", "columns", "parent", "supports", "token")

    def __init__(self, token: int, parent: "Node | None") -> None:
        self.token = token
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.columns: list[int | None] = [None, None]
        """Where the last token's keys and values stand, by context; None: not computed."""
        self.supports: list[Support | None] = [None, None]
        """What may come next, by context; None: not known."""

    def child(self, token: int) -> "Node":
        """The prefix that is longer by one token."""
        if token not in self.children:
            self.children[token] = Node(token, self)
        return self.children[token]

    def path(self) -> "Iterator[Node]":
        """The nodes of the prefix's tokens, the last one first."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class PrefixTree:
    """Prefixes of one example and the columns of its cache row that they occupy."""

    def __init__(self, row: int, naive_prompt: Sequence[int], expert_prompt: Sequence[int], num_cached: int) -> None:
        """
        Args:
            row: The example's row of the :class:`PrefixCache`.
            naive_prompt: Token ids of the naive prompt.
            expert_prompt: Token ids of the expert prompt.
            num_cached: Leading tokens, the same in both prompts, that columns ``0 .. num_cached - 1`` of the row hold.
        """
        self.row = row
        self.root = Node(-1, None)
        self._prompts = (list(naive_prompt), list(expert_prompt))
        self._num_shared = common_prefix_length(self._prompts)
        self._num_run = [num_cached, num_cached]
        self._next_column = len(naive_prompt) + len(expert_prompt) - self._num_shared
        naive_columns = list(range(len(naive_prompt)))
        self._prompt_columns = (
            naive_columns,
            naive_columns[: self._num_shared] + list(range(len(naive_prompt), self._next_column)),
        )
        self._free: list[int] = []
        self.num_columns = self._next_column
        """Columns in use."""

    def num_held(self, node: Node) -> int:
        """Columns of a prefix, prompts aside."""
        return sum(column is not None for before in node.path() for column in before.columns)

    def num_missing(self, node: Node, context: int) -> int:
        """Columns that a request would take."""
        return sum(before.columns[context] is None for before in node.path())

    def request(self, node: Node, context: int) -> Span:
        """The tokens to run so that what follows ``node`` under ``context`` is known: all of its prefix that was not run."""
        path = list(node.path())
        num_run = self._num_run[context]
        self._num_run[context] = len(self._prompts[context])
        self._num_run[1 - context] = max(self._num_run[1 - context], self._num_shared)
        columns, tokens = list(self._prompt_columns[context]), list(self._prompts[context])
        for node in reversed(path):
            column = node.columns[context]
            if column is None:
                column = node.columns[context] = self._allocate()
            else:
                num_run += 1
            columns.append(column)
            tokens.append(node.token)
        # Where all was run and only what follows was never asked, the last token is run again.
        start = min(num_run, len(tokens) - 1)
        return Span(self.row, columns[:start], columns[start:], tokens[start:])

    def evict(self, limit: int, kept: Iterable[Node]) -> None:
        """Forget keys and values of the deepest prefixes, which are the least shared, until ``limit`` columns are in use.

        What follows a forgotten prefix stays known; should more be needed there, it is run again.

        Args:
            limit: Columns that may stay in use.
            kept: Nodes that stay, with all before them.
        """
        if self.num_columns <= limit:
            return
        on_path: set[Node] = set()
        for node in kept:
            current: Node | None = node
            while current is not None and current not in on_path:
                on_path.add(current)
                current = current.parent
        nodes, level = [], [self.root]
        while level:
            level = [child for node in level for child in node.children.values()]
            nodes += level
        for node in reversed(nodes):
            if node in on_path:
                continue
            for context in (NAIVE, EXPERT):
                if (column := node.columns[context]) is not None:
                    heapq.heappush(self._free, column)
                    node.columns[context] = None
                    self.num_columns -= 1
            if self.num_columns <= limit:
                return

    def _allocate(self) -> int:
        self.num_columns += 1
        if self._free:
            return heapq.heappop(self._free)
        self._next_column += 1
        return self._next_column - 1


def common_prefix_length(prompts: Iterable[Sequence[int]]) -> int:
    """Leading tokens that all prompts share, leaving every prompt a last token of its own."""
    first, *others = prompts
    length = len(first) - 1
    for other in others:
        length = min(length, len(other) - 1)
        while list(first[:length]) != list(other[:length]):
            length -= 1
    return length

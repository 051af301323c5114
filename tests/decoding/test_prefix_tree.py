"""What a tree asks to be run is what a cache lacks, and where it says that something stands, it stands."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd_lightning.decoding.attention_plan import Span
from mixsd_lightning.decoding.mixing import EXPERT, NAIVE
from mixsd_lightning.decoding.prefix_tree import Node, PrefixTree, common_prefix_length
from mixsd_lightning.decoding.sampling import Support

NAIVE_PROMPT, EXPERT_PROMPT = [1, 2, 3, 4], [1, 2, 8, 9, 9]
NUM_PROMPT_COLUMNS = 7  # two are shared

texts = st.lists(st.integers(0, 2), max_size=5)
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=6)
contexts = st.sampled_from([NAIVE, EXPERT])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("request"), texts, contexts),
        st.tuples(st.just("evict"), texts, st.integers(0, 20)),
    ),
    max_size=30,
)


def make_tree(num_cached: int = 0) -> PrefixTree:
    return PrefixTree(3, NAIVE_PROMPT, EXPERT_PROMPT, num_cached)


def node_at(tree: PrefixTree, text: Sequence[int]) -> Node:
    node = tree.root
    for token in text:
        node = node.child(token)
    return node


def depth(node: Node) -> int:
    return 0 if node.parent is None else 1 + depth(node.parent)


def descendants(node: Node) -> Iterator[Node]:
    for child in node.children.values():
        yield child
        yield from descendants(child)


def num_held(tree: PrefixTree) -> int:
    """Columns of completion tokens."""
    return sum(column is not None for node in descendants(tree.root) for column in node.columns)


def run(memory: dict[int, tuple[int, ...]], span: Span) -> tuple[int, ...]:
    """Do what a cache does, with text for keys and values: returns the text that the span ends."""
    text = tuple(memory[column][-1] for column in span.prefix)
    assert [memory[column] for column in span.prefix] == [text[: index + 1] for index in range(len(text))]
    for column, token in zip(span.columns, span.token_ids, strict=True):
        text = (*text, token)
        memory[column] = text
    assert len({*span.prefix, *span.columns}) == len(text)
    return text


@settings(max_examples=300, deadline=None)
@given(prompts, prompts, st.booleans(), steps)
def test_spans_are_what_is_missing_and_know_where_the_rest_is(
    naive_prompt: list[int], expert_prompt: list[int], prefix_is_cached: bool, steps: list[tuple[str, list[int], int]]
) -> None:
    num_shared = common_prefix_length([naive_prompt, expert_prompt])
    num_cached = num_shared if prefix_is_cached else 0
    tree = PrefixTree(0, naive_prompt, expert_prompt, num_cached)
    memory = {column: tuple(naive_prompt[: column + 1]) for column in range(num_cached)}
    num_prompt_columns = tree.num_columns
    assert num_prompt_columns == len(naive_prompt) + len(expert_prompt) - num_shared
    num_prompt_run = {NAIVE: num_cached, EXPERT: num_cached}
    for name, text, number in steps:
        node = node_at(tree, text)
        if name == "evict":
            tree.evict(number, [node])
        else:
            prompt = (naive_prompt, expert_prompt)[number]
            path = [node_at(tree, text[: length + 1]) for length in range(len(text))]
            num_missing = sum(node.columns[number] is None for node in path)
            assert tree.num_missing(node, number) == num_missing
            span = tree.request(node, number)
            assert len(span.columns) == max(len(prompt) - num_prompt_run[number] + num_missing, 1)
            assert tree.num_held(node) == sum(column is not None for node in path for column in node.columns)
            assert run(memory, span) == (*prompt, *text)
            num_prompt_run[number] = len(prompt)
            num_prompt_run[1 - number] = max(num_prompt_run[1 - number], num_shared)
        assert tree.num_columns == num_prompt_columns + num_held(tree)


def test_a_request_is_all_of_the_prefix_the_first_time() -> None:
    tree = make_tree()
    assert tree.request(node_at(tree, [5, 6]), NAIVE) == Span(3, [], [0, 1, 2, 3, 7, 8], [*NAIVE_PROMPT, 5, 6])
    assert tree.num_columns == NUM_PROMPT_COLUMNS + 2


def test_what_the_prompts_share_is_run_once_and_has_the_same_columns() -> None:
    tree = make_tree()
    naive, expert = tree.request(tree.root, NAIVE), tree.request(tree.root, EXPERT)
    assert (naive.prefix, naive.columns, naive.token_ids) == ([], [0, 1, 2, 3], NAIVE_PROMPT)
    assert (expert.prefix, expert.columns, expert.token_ids) == ([0, 1], [4, 5, 6], EXPERT_PROMPT[2:])


@pytest.mark.parametrize("num_cached", [1, 2])
@pytest.mark.parametrize("context", [NAIVE, EXPERT])
def test_what_is_cached_already_is_not_run(num_cached: int, context: int) -> None:
    tree = make_tree(num_cached)
    span = tree.request(tree.root, context)
    assert span.prefix == list(range(num_cached))
    assert span.token_ids == (NAIVE_PROMPT, EXPERT_PROMPT)[context][num_cached:]


def test_branches_share_what_they_have_in_common() -> None:
    tree = make_tree()
    first = tree.request(node_at(tree, [5, 6, 7]), EXPERT)
    second = tree.request(node_at(tree, [5, 6, 8, 9]), EXPERT)
    assert second.token_ids == [8, 9]
    assert second.prefix == first.columns[:-1]
    assert not set(second.columns) & set(first.columns)


def test_contexts_share_nothing_of_the_completion() -> None:
    tree = make_tree()
    node = node_at(tree, [5, 6])
    naive, expert = tree.request(node, NAIVE), tree.request(node, EXPERT)
    assert expert.token_ids == [*EXPERT_PROMPT[2:], 5, 6]
    assert not set(naive.columns) & set(expert.columns)


@pytest.mark.parametrize("text", [[], [5]])
def test_the_last_token_runs_again_where_only_its_successor_is_unknown(text: list[int]) -> None:
    tree = make_tree()
    longer = tree.request(node_at(tree, [5, 6]), NAIVE)
    place = len(NAIVE_PROMPT) + len(text) - 1
    again = tree.request(node_at(tree, text), NAIVE)
    assert (again.prefix, again.columns) == (longer.columns[:place], longer.columns[place : place + 1])
    assert tree.num_columns == NUM_PROMPT_COLUMNS + 2


def test_a_child_is_made_once() -> None:
    tree = make_tree()
    node = node_at(tree, [5, 6])
    assert node_at(tree, [5, 6]) is node
    assert (node.token, depth(node), node.parent) == (6, 2, tree.root.child(5))


def test_eviction_frees_the_deepest_first_and_no_more_than_it_must() -> None:
    tree = make_tree()
    for text in ([5, 6, 7], [8, 9], [4]):
        tree.request(node_at(tree, text), NAIVE)
    depths = []
    for limit in range(tree.num_columns - 1, NUM_PROMPT_COLUMNS - 1, -1):
        before = {node: depth(node) for node in descendants(tree.root) if node.columns[NAIVE] is not None}
        tree.evict(limit, [])
        depths += [depth for node, depth in before.items() if node.columns[NAIVE] is None]
        assert tree.num_columns == limit
    assert depths == [3, 2, 2, 1, 1, 1]


def test_eviction_keeps_paths_even_beyond_the_limit() -> None:
    tree = make_tree()
    kept = node_at(tree, [5, 6, 7])
    for node in (kept, node_at(tree, [5, 6, 7, 8]), node_at(tree, [5, 9])):
        for context in (NAIVE, EXPERT):
            tree.request(node, context)
    tree.evict(0, [kept])
    assert num_held(tree) == 6
    assert tree.num_columns == NUM_PROMPT_COLUMNS + 6
    assert len(tree.request(kept, NAIVE).columns) == 1


def test_eviction_below_the_limit_does_nothing() -> None:
    tree = make_tree()
    tree.request(node_at(tree, [5, 6]), NAIVE)
    tree.evict(tree.num_columns, [])
    assert num_held(tree) == 2


def test_freed_columns_are_used_again_before_new_ones() -> None:
    tree = make_tree()
    used = tree.request(node_at(tree, [5, 6, 7]), NAIVE).columns[-3:]
    tree.evict(0, [])
    assert sorted(tree.request(node_at(tree, [8, 9]), NAIVE).columns) == sorted(used)[:2]


def test_what_follows_a_forgotten_prefix_stays_known() -> None:
    tree = make_tree()
    node = node_at(tree, [5])
    tree.request(node, NAIVE)
    node.supports[NAIVE] = support = Support(np.array([6]), np.ones(1))
    tree.evict(0, [])
    assert node.columns == [None, None]
    assert node.supports == [support, None]


@given(st.lists(prompts, min_size=1, max_size=4), texts)
def test_common_prefixes_are_the_longest_that_leave_every_prompt_a_token(
    endings: list[list[int]], beginning: list[int]
) -> None:
    sequences = [[*beginning, *ending] for ending in endings]
    length = common_prefix_length(sequences)
    assert length >= len(beginning)
    assert all(sequence[:length] == sequences[0][:length] for sequence in sequences)
    assert all(len(sequence) > length for sequence in sequences)
    has_no_token_to_spare = any(len(sequence) == length + 1 for sequence in sequences)
    assert has_no_token_to_spare or len({sequence[length] for sequence in sequences}) > 1


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [([[1, 2, 3]], 2), ([[1, 2, 3], (1, 2, 3)], 2), ([[1, 2, 3], [1, 2]], 1), ([[1, 2], [2, 2]], 0), ([[1]], 0)],
)
def test_common_prefix_length(sequences: list[Sequence[int]], expected: int) -> None:
    assert common_prefix_length(sequences) == expected
    assert common_prefix_length(iter(sequences)) == expected

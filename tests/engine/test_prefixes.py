"""States of token prefixes: what is found is what was put, whatever splits, goes or happens at the same time."""

from __future__ import annotations

import gc
import random
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations, product
from threading import Barrier
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from tests.examples import examples
from thalweg.engine.prefixes import PrefixStates
from thalweg.engine.results import DocumentState
from thalweg.errors import InvalidInputError
from thalweg.pooling.pooling import RunningMean

PLENTY = 1 << 20


class Layer(NamedTuple):
    scan: Tensor
    conv: Tensor


def state_of(ids: Sequence[int], salt: int = 0, size: int = 0) -> DocumentState:
    """A state that says what it is of: 4 bytes an id and 12 + 8 size."""
    sums = RunningMean(size)
    return DocumentState((Layer(torch.tensor([[*ids]]).int(), torch.tensor([[salt, 7, 7]]).int()),), sums, len(ids))


def nbytes_of(state: DocumentState | None) -> int:
    if state is None:
        return 0
    return sum(tensor.nbytes for layer in state.model for tensor in layer) + state.sums.total.nbytes


def array(ids: Sequence[int], dtype: str = "int32") -> np.ndarray:
    return np.array(ids, dtype=dtype)


def check(store: PrefixStates) -> None:
    """The tree is a radix tree, compressed, with as many bytes and states as it says and within its budget."""
    entries, n_states, n_bytes, stack = set(store._entries), 0, 0, [store._root]
    assert store._root.parent is None
    assert len(store._root.edge) == 0
    assert store._root.state is None
    while stack:
        node = stack.pop()
        for key, child in node.children.items():
            assert child.key == key
            assert (key[1] if node is store._root else key) == child.edge[0]  # type: ignore[index]
            assert child.parent is not None
            assert child.parent() is node
            stack.append(child)
        if node is store._root:
            continue
        assert node.edge.base is None  # a view keeps more bytes than it counts
        assert node.edge.dtype == np.int32
        assert node in entries or len(node.children) > 1
        assert node in entries or node.state is None
        assert node.state_nbytes == nbytes_of(node.state)
        entries.discard(node)
        n_states += node.state is not None
        n_bytes += node.edge.nbytes + nbytes_of(node.state)
    assert not entries
    assert (len(store), store.nbytes) == (n_states, n_bytes)
    assert store.nbytes <= store._max_bytes


def states_in(store: PrefixStates, among: Sequence[DocumentState]) -> list[int]:
    """Which of the states are kept, without a use of any."""
    kept = {id(node.state) for node in store._entries}
    return [i for i, state in enumerate(among) if id(state) in kept]


def test_an_edge_splits_at_every_token_and_no_state_is_lost() -> None:
    whole = [1, 2, 3, 4, 5, 6, 7]
    for at in range(len(whole)):
        other = [*whole[:at], 9, 9]
        store = PrefixStates(PLENTY)
        states = {tuple(ids): state_of(ids) for ids in (whole, other)}
        for ids, state in states.items():
            assert store.put(array(ids), state)
            check(store)
        for ids, state in states.items():
            assert store.longest(array(ids)) == (len(ids), state)
            assert store.longest(array([*ids, 8, 8])) == (len(ids), state)
            assert store.longest(array(ids[:-1])) == (0, None)


@pytest.mark.parametrize("order", list(permutations(range(1, 5))))
def test_prefixes_of_one_document_in_any_order(order: tuple[int, ...]) -> None:
    whole = [1, 1, 1, 1]
    store, states = PrefixStates(PLENTY), {n: state_of(whole[:n]) for n in order}
    for i, n in enumerate(order):
        assert store.put(array(whole[:n]), states[n])
        check(store)
        for length in range(len(whole) + 1):
            best = max((m for m in order[: i + 1] if m <= length), default=0)
            assert store.longest(array(whole[:length])) == (best, states.get(best))
    assert store.nbytes == 16 + sum(map(nbytes_of, states.values()))


def test_a_state_takes_the_place_of_the_one_before() -> None:
    store = PrefixStates(PLENTY)
    small, large = state_of([1, 2]), state_of([1, 2], size=10)
    for state in (small, large, small):
        assert store.put(array([1, 2]), state)
        assert store.longest(array([1, 2, 3]))[1] is state
        assert (len(store), store.nbytes) == (1, 8 + nbytes_of(state))
        check(store)
    assert store.evictions == 0


def test_salts_share_nothing() -> None:
    store = PrefixStates(PLENTY)
    salts: list[Any] = [None, "", "a", "b", ("a", 1), 1]
    states = [state_of([1, 2]) for _ in salts]
    for i, salt in enumerate(salts):
        assert store.longest(array([1, 2, 3]), salt=salt) == (0, None)
        assert store.see(array([1, 2, 3]), salt=salt) == 0
        assert store.put(array([1, 2]), states[i], salt=salt)
    for salt, state in zip(salts, states, strict=True):
        assert store.longest(array([1, 2, 3]), salt=salt)[1] is state
    check(store)
    assert store.nbytes == sum(12 + nbytes_of(state) for state in states)


def test_ids_are_the_same_in_any_dtype_and_layout() -> None:
    store, state = PrefixStates(PLENTY), state_of([1, 2, 3])
    assert store.put(array([1, 0, 2, 0, 3], "int64")[::2], state)
    for dtype in ("int32", "uint16", "int64", "uint64", ">i4"):
        assert store.longest(array([1, 2, 3, 4], dtype)) == (3, state)
    assert store.longest(array([1, 2, -3])) == (0, None)
    check(store)


def test_the_array_of_the_caller_may_change_afterwards() -> None:
    store, state = PrefixStates(PLENTY), state_of([1, 2, 3])
    put, seen = array([1, 2, 3]), array([4, 5, 6])
    store.put(put, state)
    store.see(seen)
    put[:] = seen[:] = 9
    assert store.longest(array([1, 2, 3])) == (3, state)
    assert store.see(array([4, 5, 6, 7])) == 3
    assert store.see(array([9, 9, 9])) == 0
    check(store)


def test_documents_are_seen_up_to_where_they_part() -> None:
    store = PrefixStates(PLENTY)
    assert store.see(array([1, 2, 3, 4])) == 0
    assert store.see(array([1, 2, 3, 4])) == 4
    assert store.see(array([1, 2, 7])) == 2
    assert store.see(array([1, 2])) == 2
    assert store.see(array([1, 2, 3, 4, 5])) == 4
    assert store.see(array([2, 1])) == 0
    assert store.see(array([])) == 0
    assert (len(store), store.nbytes) == (0, 4 * 8)
    assert store.longest(array([1, 2, 3, 4])) == (0, None)
    check(store)
    assert store.put(array([1, 2, 3]), state_of([1, 2, 3]))
    assert store.put(array([6, 6, 6]), state_of([6, 6, 6]))
    assert store.see(array([6, 6, 5])) == 2
    check(store)


def test_the_least_recently_used_goes_first() -> None:
    documents = [[i, i, i] for i in range(4)]
    states = [state_of(ids) for ids in documents]
    store = PrefixStates(3 * (12 + nbytes_of(states[0])))
    for ids, state in zip(documents[:3], states, strict=False):
        store.put(array(ids), state)
    assert store.longest(array(documents[0]))[1] is states[0]
    store.put(array(documents[3]), states[3])
    assert states_in(store, states) == [0, 2, 3]
    store.put(array(documents[2]), states[2])
    store.see(array(documents[0]))
    store.put(array(documents[1]), states[1])
    assert states_in(store, states) == [0, 1, 2]
    assert (store.hits, store.misses, store.evictions) == (1, 0, 2)
    check(store)


@pytest.mark.parametrize("n_children", [1, 2])
def test_an_inner_state_goes_and_its_children_stay(n_children: int) -> None:
    prefix, others = [1, 2], [[1, 2, 3, 4], [1, 2, 5, 6]][:n_children]
    inner, states = state_of(prefix, size=4), [state_of(ids) for ids in others]
    full = 8 + nbytes_of(inner) + n_children * (8 + nbytes_of(states[0]))
    store = PrefixStates(full)
    for ids, state in zip([prefix, *others], [inner, *states], strict=True):
        assert store.put(array(ids), state)
    assert store.nbytes == full
    store.see(array([9]))  # one id too many
    assert store.nbytes == full - nbytes_of(inner) + 4
    assert store.evictions == 1
    check(store)
    assert store.longest(array(prefix)) == (0, None)
    for ids, state in zip(others, states, strict=True):
        assert store.longest(array(ids)) == (4, state)


def test_a_leaf_goes_and_the_prefix_before_it_stays() -> None:
    inner, leaf = state_of([1, 2]), state_of([1, 2, 3, 4])
    full = 16 + nbytes_of(inner) + nbytes_of(leaf)
    store = PrefixStates(full)
    store.put(array([1, 2, 3, 4]), leaf)
    store.put(array([1, 2]), inner)
    store.see(array([9]))
    assert store.longest(array([1, 2, 3, 4])) == (2, inner)
    assert store.see(array([1, 2, 3, 4])) == 2
    check(store)


def test_a_state_is_found_from_far_below_it() -> None:
    store, state = PrefixStates(PLENTY), state_of([1, 2])
    store.put(array([1, 2]), state)
    for ids in ([1, 2, 3, 4], [1, 2, 3, 5, 6, 7], [1, 2, 3, 5, 6, 8]):
        store.see(array(ids))
    for n in range(2, 7):
        assert store.longest(array([1, 2, 3, 5, 6, 8][:n])) == (2, state)
    assert store.longest(array([1])) == (0, None)
    check(store)


def test_a_branch_that_nobody_needs_any_more_is_no_node() -> None:
    store = PrefixStates(4 * 4)
    assert [store.see(array(ids)) for ids in ([1, 2, 3], [1, 2, 4], [5])] == [0, 2, 0]
    check(store)
    assert [*map(len, (node.edge for node in store._entries))] == [3, 1]  # 1, 2, 4 in one edge; 1, 2, 3 forgotten
    assert store.see(array([1, 2, 3])) == 2


def test_the_budget_is_kept_to_the_byte() -> None:
    state = state_of([1, 2, 3])
    need = 12 + nbytes_of(state)
    store = PrefixStates(need)
    for ids in ([1, 2, 3], [4, 5, 6]):
        assert store.put(array(ids), state)
        assert (len(store), store.nbytes) == (1, need)
    short = PrefixStates(need - 1)
    assert not short.put(array([1, 2, 3]), state)
    assert (len(short), short.nbytes) == (0, 0)


def test_what_is_too_large_changes_nothing() -> None:
    old = state_of([1, 2, 3])
    store = PrefixStates(16 + nbytes_of(old))
    store.put(array([1, 2, 3]), old)
    store.see(array([1, 2, 3, 4]))
    before = store.nbytes
    assert not store.put(array([1, 2, 3]), state_of([1, 2, 3], size=100))
    assert not store.put(array([7] * 3), state_of([7] * 3, size=100))
    assert store.see(array([1, 2, 3, *[4] * 100])) == 4
    assert store.see(array([8] * 100)) == store.see(array([8] * 100)) == 0
    assert store.longest(array([1, 2, 3]))[1] is old
    assert (store.nbytes, store.evictions) == (before, 0)
    check(store)


def test_without_a_byte_nothing_is_kept() -> None:
    store = PrefixStates(0)
    assert not store.put(array([1]), state_of([1]))
    assert store.see(array([1])) == store.see(array([1])) == 0
    assert store.longest(array([1])) == (0, None)
    check(store)


def test_clearing_keeps_the_counts_only() -> None:
    store, state = PrefixStates(PLENTY), state_of([1, 2])
    store.put(array([1, 2]), state)
    store.see(array([1, 2, 3]))
    store.longest(array([1, 2]))
    store.clear()
    assert (len(store), store.nbytes) == (0, 0)
    assert store.longest(array([1, 2])) == (0, None)
    assert store.see(array([1, 2, 3])) == 0
    assert (store.hits, store.misses, store.evictions) == (1, 1, 0)
    check(store)


def test_a_state_that_is_read_outlives_its_eviction() -> None:
    store = PrefixStates(12 + nbytes_of(state_of([1, 2, 3])))
    store.put(array([1, 2, 3]), state_of([1, 2, 3]))
    _, held = store.longest(array([1, 2, 3]))
    store.put(array([4, 5, 6]), state_of([4, 5, 6]))
    assert store.evictions == 1
    assert held is not None
    assert held.model[0].scan.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("how", ["evicted", "cleared", "dropped"])
def test_states_are_freed_at_once(how: str) -> None:
    """Not when the garbage collector comes by, which knows nothing of their size."""
    store, tensors = PrefixStates(4096), []
    for ids in ([1, 2, 3], [1, 2, 4], [1]):
        state = state_of(ids)
        tensors.append(weakref.ref(state.model[0].scan))
        store.put(array(ids), state)
        del state
    gc.disable()
    try:
        if how == "evicted":
            store.see(np.arange(1024))
        elif how == "cleared":
            store.clear()
        else:
            del store
        assert [tensor() for tensor in tensors] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("max_bytes", [-1, 1.5, "1", True, None])
def test_bytes_that_are_no_number_of_bytes(max_bytes: Any) -> None:
    with pytest.raises(InvalidInputError, match="max_bytes"):
        PrefixStates(max_bytes)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (array([[1, 2]]), r"\(1, 2\)"),
        (np.array(3), r"\(\)"),
        (np.array([1.0, 2.0]), "float64"),
        (np.array([True]), "bool"),
        (array([1, 1 << 31], "int64"), "2147483648"),
        (array([-(1 << 31) - 1, 1], "int64"), "-2147483649"),
        (array([1 << 63], "uint64"), "9223372036854775808"),
    ],
)
def test_ids_that_are_none(ids: np.ndarray, said: str) -> None:
    store = PrefixStates(PLENTY)
    for call in (store.longest, store.see, lambda ids: store.put(ids, state_of([1, 2]))):
        with pytest.raises(InvalidInputError, match=said):
            call(ids)
    assert (store.hits, store.misses, store.nbytes) == (0, 0, 0)


def test_a_state_belongs_to_its_ids() -> None:
    store = PrefixStates(PLENTY)
    for ids in ([1], [1, 2, 3]):
        with pytest.raises(InvalidInputError, match=f"2 tokens, but {len(ids)} ids"):
            store.put(array(ids), state_of([1, 2]))
    with pytest.raises(InvalidInputError, match="no ids"):
        store.put(array([]), state_of([]))
    assert (len(store), store.nbytes) == (0, 0)


def test_a_state_after_every_token_of_a_long_document() -> None:
    """Thousands of nodes, one below the other: no recursion in look-ups or when they are freed, from either end."""
    ids = np.arange(5_000, dtype=np.int32)
    store = PrefixStates(1 << 30)
    for n in range(len(ids), 0, -1):
        store.put(ids[:n], DocumentState((), RunningMean(1), n))
    assert len(store) == len(ids)
    assert store.longest(np.append(ids[:777], 5))[0] == 777
    assert store.longest(ids)[0] == len(ids)
    check(store)
    store._max_bytes = ids.nbytes + 100 * 8
    store.see(ids[:1])
    check(store)
    assert len(store) == 100
    assert [store.longest(ids[:n])[0] for n in (98, 99, 776, 777, 4_999, 5_000)] == [98, 98, 98, 777, 777, 5_000]
    store._max_bytes = 1 << 30
    for n in range(len(ids), 0, -1):
        store.put(ids[:n], DocumentState((), RunningMean(1), n))
    store.clear()
    check(store)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_ids_are_compared_as_arrays() -> None:
    """A loop over 100,000 ids takes some 300 times as long as a comparison of the arrays."""
    ids = np.random.default_rng(0).integers(0, 50_000, 100_000).astype(np.int32)
    other = ids.copy()
    store = PrefixStates(PLENTY)
    store.put(ids, DocumentState((), RunningMean(1), len(ids)))
    assert store.longest(other)[0] == len(ids)
    compare = min(seconds(lambda: np.array_equal(ids, other)) for _ in range(30))
    find = min(seconds(lambda: store.longest(other)) for _ in range(30))
    assert find < 10 * compare + 50e-6


# What a store has to do, in the plainest way: every prefix an entry of its own.


class Reference:
    """The entries from the one used longest ago to the one used last, and the states of those that have one."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.entries: OrderedDict[tuple[int, tuple[int, ...]], DocumentState | None] = OrderedDict()
        self.hits = self.misses = self.evictions = 0

    @property
    def prefixes(self) -> set[tuple[int, tuple[int, ...]]]:
        return {(salt, ids[: n + 1]) for salt, ids in self.entries for n in range(len(ids))}

    @property
    def nbytes(self) -> int:
        return 4 * len(self.prefixes) + sum(map(nbytes_of, self.entries.values()))

    @property
    def n_states(self) -> int:
        return sum(state is not None for state in self.entries.values())

    def use(self, salt: int, ids: tuple[int, ...], state: DocumentState | None) -> bool:
        if 4 * len(ids) + nbytes_of(state) > self.max_bytes:
            return False
        old = self.entries.pop((salt, ids), None)
        self.entries[salt, ids] = state or old
        while self.nbytes > self.max_bytes:
            _, gone = self.entries.popitem(last=False)
            self.evictions += gone is not None
        return True

    def see(self, salt: int, ids: tuple[int, ...]) -> int:
        shared = max((n for n in range(len(ids) + 1) if (salt, ids[:n]) in self.prefixes), default=0)
        if ids:
            self.use(salt, ids, None)
        return shared

    def longest(self, salt: int, ids: tuple[int, ...]) -> tuple[int, DocumentState | None]:
        for n in range(len(ids), 0, -1):
            if (state := self.entries.get((salt, ids[:n]))) is not None:
                self.entries.move_to_end((salt, ids[:n]))
                self.hits += 1
                return n, state
        self.misses += 1
        return 0, None


ids_lists = st.lists(st.integers(0, 2), max_size=9).map(tuple)
salts = st.sampled_from([0, 0, 0, 1])
dtypes = st.sampled_from(["int32", "int64", "uint16"])


class Interleavings(RuleBasedStateMachine):
    """A store and the reference are the same after any calls in any order."""

    @initialize(max_bytes=st.one_of(st.integers(0, 300), st.integers(300, 2000)))
    def make(self, max_bytes: int) -> None:
        self.store, self.reference = PrefixStates(max_bytes), Reference(max_bytes)
        self.known: list[tuple[int, ...]] = []

    @rule(ids=ids_lists.filter(bool), salt=salts, size=st.integers(0, 4), dtype=dtypes)
    def put(self, ids: tuple[int, ...], salt: int, size: int, dtype: str) -> None:
        state = state_of(ids, salt, size)
        assert self.store.put(array(ids, dtype), state, salt=salt) == self.reference.use(salt, ids, state)
        self.known.append(ids)

    @rule(ids=ids_lists, salt=salts, dtype=dtypes)
    def see(self, ids: tuple[int, ...], salt: int, dtype: str) -> None:
        assert self.store.see(array(ids, dtype), salt=salt) == self.reference.see(salt, ids)
        self.known.append(ids)

    @rule(ids=ids_lists, salt=salts, dtype=dtypes)
    def longest(self, ids: tuple[int, ...], salt: int, dtype: str) -> None:
        length, state = self.store.longest(array(ids, dtype), salt=salt)
        wanted, state_wanted = self.reference.longest(salt, ids)
        assert length == wanted
        assert state is state_wanted
        assert (state is None) == (length == 0)
        if state is not None:
            assert state.model[0].scan[0].tolist() == list(ids[:length])
            assert state.model[0].conv[0, 0] == salt

    @precondition(lambda self: self.known)
    @rule(data=st.data(), more=ids_lists, salt=salts)
    def longest_of_one_that_was_there(self, data: st.DataObject, more: tuple[int, ...], salt: int) -> None:
        ids = data.draw(st.sampled_from(self.known))
        at = data.draw(st.integers(0, len(ids)))
        self.longest((*ids[:at], *more), salt, "int32")

    @rule(i=st.integers(0, 9))
    def clear(self, i: int) -> None:
        if i == 0:
            self.store.clear()
            self.reference.entries.clear()

    @invariant()
    def same(self) -> None:
        check(self.store)
        assert self.store.nbytes == self.reference.nbytes
        assert len(self.store) == self.reference.n_states
        for name in ("hits", "misses", "evictions"):
            assert getattr(self.store, name) == getattr(self.reference, name)


Interleavings.TestCase.settings = examples(300)
TestInterleavings = Interleavings.TestCase


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("max_bytes", [400, 5000])
def test_eight_threads(max_bytes: int) -> None:
    """Every state that a thread gets is that of the ids it asked for, and the tree is sound at the end."""
    store, barrier = PrefixStates(max_bytes), Barrier(8)
    documents = list(product(range(2), repeat=7))

    def work(seed: int) -> tuple[int, int]:
        choose = random.Random(seed)
        hits = misses = 0
        barrier.wait()
        for _ in range(400):
            ids, salt = choose.choice(documents)[: choose.randint(1, 7)], choose.randint(0, 1)
            match choose.choices(["put", "see", "longest", "clear"], [30, 30, 39, 1])[0]:
                case "put":
                    store.put(array(ids), state_of(ids, salt), salt=salt)
                case "see":
                    assert 0 <= store.see(array(ids), salt=salt) <= len(ids)
                case "longest":
                    length, state = store.longest(array(ids), salt=salt)
                    hits, misses = hits + (length > 0), misses + (length == 0)
                    if state is not None:
                        assert state.n_tokens == length
                        assert state.model[0].scan[0].tolist() == list(ids[:length])
                        assert state.model[0].conv[0, 0] == salt
                    else:
                        assert length == 0
                case _:
                    store.clear()
            assert store.nbytes <= max_bytes
        return hits, misses

    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(work, range(8)))
    assert (store.hits, store.misses) == tuple(map(sum, zip(*counts, strict=True)))
    assert store.hits > 100
    check(store)

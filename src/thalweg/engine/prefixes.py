"""States of token prefixes, so that what many documents begin with is run once.

They lie in a radix tree: an edge holds the ids between two points that matter, and is compared as an array. A point
matters where a state is kept, where a document that was seen ends, or where ids part. It can be at any token.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thalweg.checks import whole_number
from thalweg.engine.results import DocumentState
from thalweg.engine.sources import TokenArray
from thalweg.engine.states import nbytes
from thalweg.errors import InvalidInputError

Ids32 = npt.NDArray[np.int32]


class PrefixStates:
    """Recurrent states by the exact token ids that they come after, within a number of bytes.

    States and the ids of documents that were seen are evicted in the order in which they were last used, the oldest
    first, each on its own: a state goes while longer prefixes stay. All methods may be called from any thread.

    A state depends on more than ids: what differs in the model, its dtype or its numeric path belongs in another
    instance, or in the salt. Salts are compared as dictionary keys, and entries of one are never found with another.

    Args:
        max_bytes: for states (the model's tensors and the pooling's sums) and for the ids in the tree, 4 bytes each.

    Attributes:
        hits, misses: calls of `longest` that found a state, and those that did not.
        evictions: states that had to go for lack of space.

    Raises:
        InvalidInputError: `max_bytes` is no whole number, or negative.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = whole_number("max_bytes", max_bytes, least=0)
        self._lock = threading.Lock()
        self.hits = self.misses = self.evictions = 0
        self._reset()

    def _reset(self) -> None:
        self._root = _Node(None, np.empty(0, dtype=np.int32), None)
        self._entries: OrderedDict[_Node, None] = OrderedDict()
        """Nodes with a state or at the end of a document that was seen, the one used last at the end."""
        self._n_states = 0
        self._nbytes = 0

    def __len__(self) -> int:
        """Number of states."""
        return self._n_states

    @property
    def nbytes(self) -> int:
        """Bytes of all states and ids, at most `max_bytes`."""
        with self._lock:
            return self._nbytes

    def longest(self, ids: TokenArray, *, salt: Hashable = None) -> tuple[int, DocumentState | None]:
        """The state after the longest prefix of ids (n,) that has one: its length, up to n, and the state.

        (0, None) where none is kept. The state is the object that was put, which others may get as well.

        Raises:
            InvalidInputError: the ids are not whole numbers (n,) that fit into 32 bits.
        """
        ids = _checked(ids)
        with self._lock:
            node, length, _ = self._find(ids, salt)
            while node.state is None and node.parent is not None:
                length -= len(node.edge)
                node = _parent(node)
            if node.state is None:
                self.misses += 1
                return 0, None
            self.hits += 1
            self._entries.move_to_end(node)
            return length, node.state

    def put(self, ids: TokenArray, state: DocumentState, *, salt: Hashable = None) -> bool:
        """Keep the state after exactly the ids (n,), n ≥ 1, in place of the one that was there.

        The ids are copied. The state is not: nothing may write to its tensors and sums any more.

        Returns:
            Whether it is kept. A state that does not fit in `max_bytes` with all its ids changes nothing.

        Raises:
            InvalidInputError: the ids are none, or not whole numbers (n,) that fit into 32 bits, or the state has seen
                another number of tokens.
        """
        ids = _checked(ids)
        if not len(ids):
            raise InvalidInputError("the state after no ids is every document's: put one after at least one id")
        if state.n_tokens != len(ids):
            raise InvalidInputError(
                f"the state has seen {state.n_tokens} tokens, but {len(ids)} ids are given: give the ids it has seen"
            )
        state_nbytes = nbytes(state.model) + state.sums.total.nbytes
        if state_nbytes + ids.nbytes > self._max_bytes:
            return False
        with self._lock:
            node = self._node(ids, salt, self._find(ids, salt))
            self._set_state(node, state, state_nbytes)
            self._use(node)
        return True

    def see(self, ids: TokenArray, *, salt: Hashable = None) -> int:
        """Remember the ids (n,) of a document; how many at their beginning are those of one seen or put before.

        Ids that do not fit in `max_bytes` by themselves are not remembered.

        Raises:
            InvalidInputError: the ids are not whole numbers (n,) that fit into 32 bits.
        """
        ids = _checked(ids)
        with self._lock:
            place = self._find(ids, salt)
            if 0 < ids.nbytes <= self._max_bytes:
                self._use(self._node(ids, salt, place))
        return place.shared

    def clear(self) -> None:
        """Forget everything but the counts."""
        with self._lock:
            old = self._root, self._entries
            self._reset()
        del old  # here, because it takes a while to free many states

    def _find(self, ids: Ids32, salt: Hashable) -> _Place:
        node, depth = self._root, 0
        while depth < len(ids):
            child = node.children.get(_key(ids, depth, salt))
            if child is None:
                break
            shared = _n_common(child.edge, ids[depth:])
            if shared < len(child.edge):
                return _Place(node, depth, depth + shared)
            node, depth = child, depth + shared
        return _Place(node, depth, depth)

    def _node(self, ids: Ids32, salt: Hashable, place: _Place) -> _Node:
        """The node after exactly the ids, made if there is none; the caller makes it an entry."""
        node, depth, shared = place
        rest = ids[shared:].copy()
        if shared > depth:
            node = _split(node.children[_key(ids, depth, salt)], shared - depth)
        if len(rest):
            key = _key(ids, shared, salt)
            node.children[key] = leaf = _Node(key, rest, node)
            self._nbytes += rest.nbytes
            return leaf
        return node

    def _set_state(self, node: _Node, state: DocumentState | None, state_nbytes: int) -> None:
        self._n_states += (state is not None) - (node.state is not None)
        self._nbytes += state_nbytes - node.state_nbytes
        node.state, node.state_nbytes = state, state_nbytes

    def _use(self, node: _Node) -> None:
        """Make the node the entry used last, and evict others until the rest fits."""
        self._entries[node] = None
        self._entries.move_to_end(node)
        while self._nbytes > self._max_bytes:
            oldest, _ = self._entries.popitem(last=False)
            self.evictions += oldest.state is not None
            self._set_state(oldest, None, 0)
            self._prune(oldest)

    def _prune(self, node: _Node) -> None:
        """Take a node that is no entry any more, and those above it, out of the tree if they do not matter."""
        while node.parent is not None and node not in self._entries:
            if len(node.children) > 1:
                return
            if node.children:
                _merge(node)
                return
            parent = _parent(node)
            del parent.children[node.key]
            self._nbytes -= node.edge.nbytes
            node = parent


class _Node:
    """A point in the tree.

    key: its place among its parent's children; edge: (k,) int32, the ids that lead here from its parent, at least one
    but for the root; parent: a weak reference, so that what is forgotten is freed at once; state: the one after exactly
    the ids on the way from the root, and its bytes.
    """

    __slots__ = ("__weakref__", "children", "edge", "key", "parent", "state", "state_nbytes")

    def __init__(self, key: Hashable, edge: Ids32, parent: _Node | None) -> None:
        self.key = key
        self.edge = edge
        self.parent = None if parent is None else weakref.ref(parent)
        self.children: dict[Hashable, _Node] = {}
        self.state: DocumentState | None = None
        self.state_nbytes = 0


class _Place(NamedTuple):
    """How far the tree knows some ids: `node` is after the first `depth`; the first `shared` are somewhere in it, those
    after `depth` at the beginning of the edge to a child of `node`."""

    node: _Node
    depth: int
    shared: int


def _checked(ids: TokenArray) -> Ids32:
    """The ids as int32, which may be the caller's own array."""
    found = np.asarray(ids)
    if found.ndim != 1 or (found.dtype.kind not in "iu" and len(found)):
        raise InvalidInputError(f"ids must be whole numbers (n,), got {found.dtype} {found.shape}")
    limits = np.iinfo(np.int32)
    if found.dtype != np.int32 and len(found) and not limits.min <= found.min() <= found.max() <= limits.max:
        raise InvalidInputError(f"ids must fit into 32 bits, got {found.min()}..{found.max()}")
    return found.astype(np.int32, copy=False)


def _key(ids: Ids32, depth: int, salt: Hashable) -> Hashable:
    """The key of the child that goes on with ids[depth]. The salt is in those of the first level: all else is below."""
    return int(ids[depth]) if depth else (salt, int(ids[0]))


def _n_common(a: Ids32, b: Ids32) -> int:
    """How many ids at the beginning of a (m,) and b (n,), m, n ≥ 1, are the same."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax())
    return first if differs[first] else n


def _parent(node: _Node) -> _Node:
    parent = node.parent() if node.parent is not None else None
    assert parent is not None, "a node lives as long as its children, and the root is never asked"
    return parent


def _split(node: _Node, at: int) -> _Node:
    """A new node above this one, after `at` of the ids of its edge. Copies, as views would keep the whole edge."""
    parent = _parent(node)
    upper = _Node(node.key, node.edge[:at].copy(), parent)
    lower = node.edge[at:].copy()
    node.key, node.edge, node.parent = int(lower[0]), lower, weakref.ref(upper)
    upper.children[node.key] = node
    parent.children[upper.key] = upper
    return upper


def _merge(node: _Node) -> None:
    """Take out a node with one child, whose edge becomes that of both."""
    (child,) = node.children.values()
    parent = _parent(node)
    edge = np.concatenate([node.edge, child.edge])
    child.key, child.edge, child.parent = node.key, edge, node.parent
    parent.children[child.key] = child

"""The layout of one packed step: a flat run of tokens cut into segments, and the index tensors its ops share.

Legend: N tokens of the run, S segments, S_in states that segments start from, S_out segments whose state is wanted at
the end, Q inner chunk of a scan.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.errors import InvalidInputError
from thalweg.system.cached import cached_property


class Packing:
    """One step: N tokens of S segments, each the next piece of one document.

    Args:
        lengths: tokens of each segment, all >= 1; the segments lie one after the other in the run.
        n_carried: the *first* `n_carried` segments continue from a carried state; the others start from the zero
            state.
        carried_rows: the row of every `initial_state` that each of them continues from; several may share one. None:
            rows 0..n_carried-1.
        wanted: ascending segment numbers whose end state is wanted; they are the rows of every `final_state`.
        device: where the index tensors live.

    An instance is shared by all layers of a step, so whatever depends on the layout alone is computed once.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        n_carried: int = 0,
        carried_rows: Sequence[int] | None = None,
        wanted: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise InvalidInputError(f"a step needs segments of at least one token, got lengths {list(lengths)!r}")
        if not 0 <= n_carried <= len(lengths):
            raise InvalidInputError(f"n_carried is {n_carried}, but the step has {len(lengths)} segments")
        if any(b <= a for a, b in pairwise(wanted)) or (wanted and not 0 <= wanted[0] <= wanted[-1] < len(lengths)):
            raise InvalidInputError(
                f"wanted must hold ascending segment numbers below {len(lengths)}, got {list(wanted)!r}"
            )
        if carried_rows is not None and (len(carried_rows) != n_carried or min(carried_rows, default=0) < 0):
            raise InvalidInputError(
                f"carried_rows must hold a row for each of n_carried={n_carried} segments, got {list(carried_rows)!r}"
            )
        self.lengths = tuple(lengths)
        self.n_carried = n_carried
        self.carried_rows = tuple(range(n_carried) if carried_rows is None else carried_rows)
        self.wanted = tuple(wanted)
        self.device = torch.device(device)
        self.cu_seqlens: tuple[int, ...] = tuple(accumulate(lengths, initial=0))
        self._plans: dict[tuple[int, int], list[BlockGroup]] = {}
        self._halos: dict[int, ConvHalo] = {}
        self._tables: dict[int, Tensor] = {}

    @classmethod
    def whole(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Packing:
        """Whole documents: no state comes in, none is kept."""
        return cls(lengths, device=device)

    @property
    def n_tokens(self) -> int:
        return self.cu_seqlens[-1]

    @property
    def n_segments(self) -> int:
        return len(self.lengths)

    @property
    def last_rows(self) -> tuple[int, ...]:
        """Position in the run of each segment's last token."""
        return tuple(end - 1 for end in self.cu_seqlens[1:])

    @cached_property
    def starts(self) -> Tensor:
        """(S,) int64: position of each segment's first token."""
        return torch.tensor(self.cu_seqlens[:-1], device=self.device)

    @cached_property
    def bounds(self) -> Tensor:
        """(S + 1,) int64: `cu_seqlens` as a tensor."""
        return torch.tensor(self.cu_seqlens, device=self.device)

    @property
    def n_states(self) -> int:
        """S_in: rows of every `initial_state`."""
        return 1 + max(self.carried_rows, default=-1)

    @cached_property
    def initial_rows(self) -> Tensor:
        """(S,) int64: each segment's row of `initial_state`, -1 for none."""
        none = [-1] * (self.n_segments - self.n_carried)
        return torch.tensor([*self.carried_rows, *none], device=self.device)

    def by_segment(self, initial_state: Tensor) -> Tensor:
        """(S_in, …) -> (n_carried, …): the rows of a state in the order of the segments that continue from them."""
        in_order = self.carried_rows == tuple(range(self.n_carried))
        return initial_state if in_order else initial_state[list(self.carried_rows)]

    def with_own_states(self) -> Packing:
        """The same layout for a state that has been brought in the order of the segments (`by_segment`)."""
        return Packing(self.lengths, n_carried=self.n_carried, wanted=self.wanted, device=self.device)

    @cached_property
    def wanted_rows(self) -> Tensor:
        """(S,) int64: each segment's row of `final_state`, -1 for none."""
        rows = {segment: row for row, segment in enumerate(self.wanted)}
        return torch.tensor([rows.get(segment, -1) for segment in range(self.n_segments)], device=self.device)

    @cached_property
    def segment_ids(self) -> Tensor:
        """(N,) int64: the segment of each token."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return torch.repeat_interleave(torch.arange(self.n_segments, device=self.device), lengths)

    @cached_property
    def first_seen(self) -> Tensor:
        """(N,) int64: where the segment of each token begins."""
        return self.starts[self.segment_ids]

    def conv_halo(self, width: int) -> ConvHalo:
        """What a causal convolution of `width` taps must know about the starts of segments."""
        if width not in self._halos:
            self._halos[width] = ConvHalo.build(self, width)
        return self._halos[width]

    def block_groups(self, chunk_size: int, blocks_per_group: int) -> list[BlockGroup]:
        """The run cut into blocks of at most `chunk_size` tokens, `blocks_per_group` of them side by side."""
        key = (chunk_size, blocks_per_group)
        if key not in self._plans:
            blocks = _cut_blocks(self, chunk_size)
            self._plans[key] = [
                BlockGroup(blocks[i : i + blocks_per_group], self.segment_ids, self.n_states)
                for i in range(0, len(blocks), blocks_per_group)
            ]
        return self._plans[key]

    def block_table(self, chunk_size: int) -> Tensor:
        """(b, 6) int64: start, stop, enters, leaves, initial and final of every block."""
        if chunk_size not in self._tables:
            blocks = _cut_blocks(self, chunk_size)
            fields = [(b.start, b.stop, b.enters, b.leaves, b.initial, b.final) for b in blocks]
            self._tables[chunk_size] = torch.tensor(fields, device=self.device)
        return self._tables[chunk_size]


@dataclass(frozen=True)
class ConvHalo:
    """Index tensors of a causal convolution over a packed run; `pad` = width - 1 columns reach back.

    Attributes:
        rows: (R,) positions of the tokens whose window reaches before their segment (the first `pad` of each).
        windows: (R, pad + 1) int64 positions in the concatenation [zero row, carried columns, run] of what they see.
    """

    rows: Tensor
    windows: Tensor

    @classmethod
    def build(cls, packing: Packing, width: int) -> ConvHalo:
        pad, device = width - 1, packing.device
        starts = packing.starts
        lengths = torch.tensor(packing.lengths, device=device)
        run = 1 + packing.n_carried * pad

        def locate(segment: Tensor, offset: Tensor) -> Tensor:
            """Position of the column `offset` tokens after the segment's start (negative: before it)."""
            carried = 1 + segment * pad + pad + offset
            before = torch.where(segment < packing.n_carried, carried, torch.zeros_like(carried))
            return torch.where(offset >= 0, run + starts[segment] + offset, before)

        segment = torch.arange(packing.n_segments, device=device)[:, None].expand(-1, pad)
        offset = torch.arange(pad, device=device).expand(packing.n_segments, -1)
        inside = offset < lengths[:, None]
        segment, offset = segment[inside], offset[inside]
        taps = torch.arange(-pad, 1, device=device)
        return cls(
            rows=starts[segment] + offset,
            windows=locate(segment[:, None].expand(-1, width), offset[:, None] + taps),
        )


@dataclass(frozen=True)
class Block:
    """At most Q neighbouring tokens. At most one segment reaches in from before and at most one goes on after.

    Attributes:
        start, stop: tokens of the run.
        lengths: tokens in it of each segment that has any.
        initial: row of `initial_state` that enters, or -1.
        enters: leading tokens whose segment has a past: a carried state or an earlier block.
        leaves: trailing tokens whose segment's state is needed after the block.
        final: row of `final_state` that the block completes, or -1.
    """

    start: int
    stop: int
    lengths: tuple[int, ...]
    initial: int
    enters: int
    leaves: int
    final: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def rows_inside(self, rows: Sequence[int]) -> list[int]:
        """Those of ascending positions in the run that are in the block, counted from its start."""
        return [row - self.start for row in rows[bisect_left(rows, self.start) : bisect_left(rows, self.stop)]]

    @property
    def passes_through(self) -> bool:
        """One segment fills the block and needs its past after it."""
        return self.enters == self.leaves == self.size


WORKSPACE = 1 << 28
"""Bytes that the (q, q) matrices of one group may take where blocks run side by side."""


def blocks_side_by_side(device: torch.device, block_bytes: int) -> int:
    """Blocks of a group: one on the CPU, where its matrices stay in cache; many on other devices, to fill them.

    Many also for gradients: the backward pass of every slice of the run fills a tensor as long as the run.
    `block_bytes`: of the matrices of one block.
    """
    if device.type == "cpu" and not torch.is_grad_enabled():
        return 1
    return max(1, WORKSPACE // block_bytes)


def _cut_blocks(packing: Packing, chunk_size: int) -> list[Block]:
    """Cut the run into blocks.

    A segment with a carried or a wanted state gets blocks of its own, so states come and go at block edges only.
    The others share blocks: nothing is padded however short they are.
    """
    final_row = {segment: row for row, segment in enumerate(packing.wanted)}
    edges = {0, packing.n_tokens}
    for segment in {*range(packing.n_carried), *packing.wanted}:
        edges |= {packing.cu_seqlens[segment], packing.cu_seqlens[segment + 1]}
    ordered = sorted(edges)
    cuts = [c for a, b in pairwise(ordered) for c in range(a, b, chunk_size)] + [packing.n_tokens]

    blocks = []
    segment = 0
    for start, stop in pairwise(cuts):
        while packing.cu_seqlens[segment + 1] <= start:
            segment += 1
        first = last = segment
        while packing.cu_seqlens[last + 1] < stop:
            last += 1
        continues = packing.cu_seqlens[first] < start
        carried = not continues and first < packing.n_carried
        goes_on = packing.cu_seqlens[last + 1] > stop or last in final_row
        blocks.append(
            Block(
                start=start,
                stop=stop,
                lengths=tuple(b - a for a, b in pairwise((start, *packing.cu_seqlens[first + 1 : last + 1], stop))),
                initial=packing.carried_rows[first] if carried else -1,
                enters=min(packing.cu_seqlens[first + 1], stop) - start if continues or carried else 0,
                leaves=stop - max(packing.cu_seqlens[last], start) if goes_on else 0,
                final=final_row.get(last, -1) if packing.cu_seqlens[last + 1] == stop else -1,
            )
        )
    return blocks


@dataclass(frozen=True)
class BlockGroup:
    """Blocks that a scan treats side by side as one (b, q, …) batch, q the longest of them.

    A group of one block is a view of the run. Several blocks of unequal size are padded inside the group; the
    padding is masked by `inside`. (No reference to the packing: a cycle would keep every step's tensors alive until
    the garbage collector happens to run.)
    """

    blocks: list[Block]
    segment_ids: Tensor = field(repr=False)  # (N,) of the whole run
    n_states: int
    _made: dict[Hashable, Tensor] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return self.segment_ids.device

    @cached_property
    def size(self) -> int:
        return max(block.size for block in self.blocks)

    @cached_property
    def is_slice(self) -> bool:
        """The group's tokens are neighbours in the run and no block is padded."""
        return all(block.size == self.size for block in self.blocks)

    @cached_property
    def _index(self) -> Tensor:
        """(b, q) int64 positions in the run; padding repeats the block's first token."""
        start = torch.tensor([block.start for block in self.blocks], device=self.device)[:, None]
        return start + torch.where(self.inside, torch.arange(self.size, device=self.device), 0)

    @cached_property
    def inside(self) -> Tensor:
        """(b, q) bool: a token, not padding."""
        sizes = torch.tensor([block.size for block in self.blocks], device=self.device)
        return torch.arange(self.size, device=self.device) < sizes[:, None]

    def take(self, run: Tensor) -> Tensor:
        """(N, …) -> (b, q, …): the group's tokens."""
        if self.is_slice:
            piece = run[self.blocks[0].start : self.blocks[-1].stop]
            return piece.unflatten(0, (len(self.blocks), self.size))
        return run[self._index]

    def flatten(self, batch: Tensor) -> Tensor:
        """(b, q, …) -> (n, …): back to neighbours in the run, padding dropped."""
        return batch.flatten(0, 1) if self.is_slice else batch[self.inside]

    @cached_property
    def visible(self) -> Tensor:
        """(b, q, q) bool: token i may look at token j: they are of the same segment, and j <= i.

        Padding sees nothing: it repeats a token of the first segment, whose sums are not those of the last.
        """
        segments = self.take(self.segment_ids)
        i = torch.arange(self.size, device=self.device)
        return (segments[:, :, None] == segments[:, None, :]) & (i <= i[:, None]) & self.inside[:, :, None]

    @cached_property
    def first(self) -> Tensor | None:
        """(b, q) int64: where in its block the token's segment begins; None where each block is of one segment."""
        if all(len(block.lengths) == 1 for block in self.blocks):
            return None
        segments = self.take(self.segment_ids)
        begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0)) & self.inside
        return torch.where(begins, torch.arange(self.size, device=self.device), 0).cummax(1).values

    def sums(self, values: Tensor) -> Tensor:
        """(b, q, H) -> (b, q, H): running sums over each segment's tokens in a block.

        Of one block they are rounded by nothing that other segments hold; of several, side by side, in float64 hardly.
        """
        if len(self.blocks) == 1:
            return torch.cat([piece.cumsum(1) for piece in values.split(self.blocks[0].lengths, dim=1)], dim=1)
        sums = values.cumsum(1)
        if self.first is None:
            return sums
        before = (sums - values).gather(1, self.first[..., None].expand_as(sums))
        return sums - before

    def once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What `make` makes of the layout alone, made once for all layers."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @cached_property
    def enters(self) -> Tensor:
        """(b, q) bool: tokens whose segment has a past."""
        counts = torch.tensor([block.enters for block in self.blocks], device=self.device)
        return torch.arange(self.size, device=self.device) < counts[:, None]

    @property
    def all_enter(self) -> bool:
        """Whether all tokens' segments have a past."""
        return all(block.enters == self.size for block in self.blocks)

    @property
    def all_leave(self) -> bool:
        """Whether all tokens' segments have a state that is needed after the block."""
        return all(block.leaves == self.size for block in self.blocks)

    @cached_property
    def leaves(self) -> Tensor:
        """(b, q) bool: tokens whose segment's state is needed after the block."""
        first = torch.tensor([block.size - block.leaves for block in self.blocks], device=self.device)
        return self.inside & (torch.arange(self.size, device=self.device) >= first[:, None])

    @cached_property
    def links(self) -> Links:
        return Links.build(self.blocks, self.n_states, self.device)


@dataclass(frozen=True)
class Links:
    """Which state enters and leaves which of a group's blocks.

    States from outside the group are numbered: 0 the zero state, 1 … S_in the carried ones, S_in + 1 the one that
    the group before left. Level 0 holds the blocks whose leaving state needs none of this group's, level d + 1 those
    that one segment fills and that follow a block of level d.

    Attributes:
        levels: per level, (n,) int64 block numbers.
        pasts: per level, (n,) int64: level 0 counts states outside, level d the blocks of level d - 1.
        order: (b,) int64: where each block stands in the levels written one after the other.
        sources: (b,) int64: each block's entering state in the list [outside, leaving].
        n_states: S_in.
    """

    levels: list[Tensor]
    pasts: list[Tensor]
    order: Tensor
    sources: Tensor
    n_states: int

    def hand_on(
        self,
        zero: Tensor,
        carry: Tensor | None,
        initial_state: Tensor | None,
        leave: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The states (b, …) that enter and leave each block.

        Blocks that one segment fills depend on the block before. They are taken level by level, all chains at once:
        the work is linear in the blocks, the depth that of the longest chain.

        Args:
            zero: (1, …) the zero state.
            carry: (…) the state that the group before left, None for zero.
            initial_state: (S_in, …) carried states, None for zeros.
            leave: (n,) numbers of blocks and their (n, …) states before -> the states that leave them.
        """
        carried = zero.expand(self.n_states, *zero.shape[1:]) if initial_state is None else initial_state
        outside = torch.cat([zero, carried, zero if carry is None else carry[None]])
        levels: list[Tensor] = []
        for level, blocks in enumerate(self.levels):
            levels.append(leave(blocks, (levels[-1] if level else outside)[self.pasts[level]]))
        leaving = torch.cat(levels)[self.order]
        return torch.cat([outside, leaving])[self.sources], leaving

    @classmethod
    def build(cls, blocks: Sequence[Block], n_states: int, device: torch.device) -> Links:
        n_outside = n_states + 2
        levels: list[list[int]] = []
        pasts: list[list[int]] = []
        place: list[tuple[int, int]] = []
        sources = []
        for i, block in enumerate(blocks):
            if block.initial >= 0:
                source = 1 + block.initial
            elif not block.enters:
                source = 0
            else:
                source = n_outside - 1 if i == 0 else n_outside + i - 1
            sources.append(source)
            level, past = 0, source if block.passes_through else 0
            if past >= n_outside:
                level, past = place[i - 1][0] + 1, place[i - 1][1]
            if level == len(levels):
                levels.append([])
                pasts.append([])
            place.append((level, len(levels[level])))
            levels[level].append(i)
            pasts[level].append(past)
        offsets = tuple(accumulate((len(level) for level in levels), initial=0))

        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        return cls(
            levels=[tensor(level) for level in levels],
            pasts=[tensor(past) for past in pasts],
            order=tensor([offsets[level] + position for level, position in place]),
            sources=tensor(sources),
            n_states=n_states,
        )

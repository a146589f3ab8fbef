"""What has to be known of a tokenizer to stream words of any length: its model, its rows and its units."""

import numpy as np
import tokenizers

from thalweg.tokenization.cuts import CutRules
from thalweg.tokenization.runs import RunRules
from thalweg.tokenization.segmenters import UnprovenError, make_segmenter
from thalweg.tokenization.spelling import Speller
from thalweg.tokenization.units import UnitReader, Units

_LEAST_MARGIN = 16  # the known patterns look at most 4 characters back or ahead within a row
_MOST_MARGIN = 1024


class LongWords:
    """Raises UnprovenError, whose text names the setting, where it cannot be done.

    margin: so many characters at both ends of a row are always kept in sight: more than a pattern looks back or ahead,
    and more than any added token has.
    """

    def __init__(self, library: tokenizers.Tokenizer, rules: CutRules) -> None:
        self.margin = max(_LEAST_MARGIN, rules.added_tokens.longest + 1)
        if self.margin > _MOST_MARGIN:
            raise UnprovenError(f"it has an added token of {self.margin - 1} characters")
        self.runs = RunRules(rules.pre_tokenizers)
        self.speller = Speller(library)
        refusal = self.runs.refusal or self.speller.refusal
        if refusal:
            raise UnprovenError(refusal)
        self.segmenter = make_segmenter(library)
        self.units = UnitReader(library, rules.normalizers, rules.added_tokens, self.runs, self.speller, self.segmenter)

    def find_row(self, units: Units, done: int) -> tuple[int, np.uint64] | None:
        """The row in which a window ends: its first unit beyond `margin` and beyond character `done`, of those that the
        normalizer leaves anything of, and its kinds.

        None if there is none, or if it is too short for anything to be left out.
        """
        kinds = np.bitwise_and.accumulate(units.kinds.members[::-1])[::-1]  # of all units from each one on
        together = self.runs.in_one_word(kinds)
        begin = int(np.argmax(together))
        if begin > 0:
            kinds = kinds & ~units.kinds.not_after[begin - 1]
        starts = together & self.runs.in_one_word(kinds & units.kinds.first)
        if not starts.any():
            return None
        start = int(np.argmax(starts))
        beyond = int(np.searchsorted(units.bounds, max(int(units.bounds[start]) + self.margin, done)))
        filled = units.filled(beyond, max(0, self.ends(units)[1]))
        return (int(filled[0]), kinds[start] & units.kinds.first[start]) if len(filled) else None

    def ends(self, units: Units) -> tuple[int, int]:
        """For a row at the end of a window: the first unit that does not yet go to the model, and the first of those
        before it that are kept in sight; -1 if there are not as many."""
        end = int(np.searchsorted(units.bounds, units.bounds[-1] - self.margin, side="right")) - 1
        kept = int(np.searchsorted(units.bounds, units.bounds[max(end, 0)] - self.margin, side="right")) - 1
        return end, kept

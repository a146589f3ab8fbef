"""How the texts of one tokenizer can be split; worked out, and proved on itself, when the first long text comes."""

import tokenizers

from thalweg.system.cached import cached_property
from thalweg.tokenization.cuts import CutRules
from thalweg.tokenization.long_words import LongWords
from thalweg.tokenization.segmenters import UnprovenError
from thalweg.tokenization.self_check import find_mismatch, find_mismatch_in_rows


class Splitter:
    """See `windows.Splitting`."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self.library = library

    @cached_property
    def rules(self) -> CutRules:
        rules = CutRules(self.library)
        if rules.refusal is None:
            rules.refusal = find_mismatch(_Unchecked(self.library, rules, "not asked for"))
        return rules

    @cached_property
    def words(self) -> LongWords | str:
        if self.rules.refusal is not None:
            return self.rules.refusal
        try:
            words = LongWords(self.library, self.rules)
        except UnprovenError as error:
            return str(error)
        return find_mismatch_in_rows(_Unchecked(self.library, self.rules, words)) or words


class _Unchecked:
    def __init__(self, library: tokenizers.Tokenizer, rules: CutRules, words: LongWords | str) -> None:
        self.library = library
        self.rules = rules
        self.words = words

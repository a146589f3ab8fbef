"""Named sets: the public data of the paper's recipe, as tables.

The mix of e5-mistral (arXiv 2401.00368) with mined negatives was put together by the authors of Echo embeddings (arXiv
2402.15449); the files on the hub are a copy of theirs, a file of `{query, positive, negative}` for each data set. What
the recipe takes a share of (ELI5 0.1, …) was sampled by them, so the files are taken whole.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One data set of a named set.

    name: of the data set; file: in the repository or folder; instructions: put before queries, row by row in turn where
    there are several; share: of the original data set that the recipe uses, and that the file holds; licence: of the
    original data.
    """

    name: str
    file: str
    instructions: tuple[str, ...]
    share: float = 1.0
    licence: str | None = None


@dataclass(frozen=True)
class NamedSet:
    """A repository of data sets on the hub.

    repository: its id; members: its data sets; none: those of its card whose names have `configs` in them; licence: of
    those.
    """

    repository: str
    members: tuple[Member, ...] = ()
    configs: str = ""
    licence: str | None = None


_WIKIPEDIA = "Given a question, retrieve Wikipedia passages that answer the question"
_CHINESE = "Given a Chinese search query, retrieve web passages that answer the question"
_MS_MARCO = "MS MARCO terms (non-commercial research)"

E5_MISTRAL_PUBLIC = NamedSet(
    "liuqi6777/echo-data",
    (
        Member(
            "allnli",
            "allnli.jsonl",
            (
                "Given a premise, retrieve a hypothesis that is entailed by the premise",
                "Retrieve semantically similar text",
            ),
            licence="SNLI: CC-BY-SA-4.0; MultiNLI: mixed, see its paper",
        ),
        Member("dureader", "dureader.jsonl", (_CHINESE,), licence="Apache-2.0"),
        Member(
            "eli5",
            "eli5_question_answer.jsonl",
            ("Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum",),
            share=0.1,
        ),
        Member(
            "fever",
            "fever.jsonl",
            ("Given a claim, retrieve documents that support or refute the claim",),
            licence="CC-BY-SA-3.0",
        ),
        Member(
            "hotpotqa",
            "hotpot_qa.jsonl",
            ("Given a multi-hop question, retrieve documents that can help answer the question",),
            licence="CC-BY-SA-4.0",
        ),
        Member("miracl", "miracl.jsonl", (_WIKIPEDIA,), licence="Apache-2.0"),
        Member("mrtydi", "mrtydi.jsonl", (_WIKIPEDIA,), licence="Apache-2.0"),
        Member(
            "msmarco-passage",
            "msmarco_passage.jsonl",
            ("Given a web search query, retrieve relevant passages that answer the query",),
            share=0.5,
            licence=_MS_MARCO,
        ),
        Member(
            "msmarco-document",
            "msmarco_document.jsonl",
            ("Given a web search query, retrieve relevant documents that answer the query",),
            share=0.2,
            licence=_MS_MARCO,
        ),
        Member("nq", "nq.jsonl", (_WIKIPEDIA,), licence="CC-BY-SA-3.0"),
        Member(
            "quora",
            "quora_duplicates.jsonl",
            (
                "Given a question, retrieve questions that are semantically equivalent to the given question",
                "Find questions that have the same meaning as the input question",
            ),
            share=0.1,
            licence="Quora terms (non-commercial)",
        ),
        Member(
            "squad",
            "squad.jsonl",
            ("Retrieve Wikipedia passages that answer the question",),
            licence="CC-BY-SA-4.0",
        ),
        Member("t2ranking", "t2ranking.jsonl", (_CHINESE,), share=0.5, licence="Apache-2.0"),
        Member("triviaqa", "trivia_qa.jsonl", ("Retrieve Wikipedia passages that answer the question",)),
    ),
)

SETS = {
    "e5-mistral-public": E5_MISTRAL_PUBLIC,
    "open-synthetic-embeddings": NamedSet("jspringer/open-synthetic-embeddings", configs="70b", licence="MIT"),
}
"""By name. Rows of the second hold their own instruction each; the paper used those that Llama 3.1 70B wrote."""

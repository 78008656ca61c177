"""`tokenize.clean`: the rules by which pretraining text is cleaned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm.params.section import Positive, Section, Share

# Words of an n-gram, and the share of the characters from which a document is removed.
Grams = list[tuple[Positive, Share]]


class PersonalData(Section):
    """Kinds of personal data that are masked. No document is removed for them."""

    email: bool = False
    phone: Annotated[str, Field(pattern="^[A-Z]{2}$")] | None = None
    ip: bool = False


class GopherQuality(Section):
    """Document rules of Rae et al. 2021 (arXiv:2112.11446, A.1.1); None: the rule is off."""

    min_doc_words: Positive | None = None
    max_doc_words: Positive | None = None
    min_avg_word_length: Annotated[float, Field(gt=0)] | None = None
    max_avg_word_length: Annotated[float, Field(gt=0)] | None = None
    max_symbol_word_ratio: Annotated[float, Field(gt=0)] | None = None
    max_bullet_lines_ratio: Share | None = None
    max_ellipsis_lines_ratio: Share | None = None
    min_alpha_words_ratio: Share | None = None
    min_stop_words: Annotated[int, Field(ge=1, le=8)] | None = None


class GopherRepetition(Section):
    """Repetition within a document, ibid., table A1; None or []: the rule is off."""

    dup_line_frac: Share | None = None
    dup_para_frac: Share | None = None
    dup_line_char_frac: Share | None = None
    dup_para_char_frac: Share | None = None
    top_n_grams: Grams = []
    dup_n_grams: Grams = []


class C4(Section):
    """Line and document rules of Raffel et al. 2020 (arXiv:1910.10683, 2.2)."""

    filter_no_terminal_punct: bool = False
    min_words_per_line: Positive | None = None
    max_word_length: Positive | None = None
    filter_javascript: bool = False
    filter_policy: bool = False
    remove_citations: bool = False
    filter_lorem_ipsum: bool = False
    filter_curly_bracket: bool = False
    min_num_sentences: Positive | None = None


class NearDuplicates(Section):
    """MinHash-LSH (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3)."""

    threshold: Annotated[float, Field(ge=0.3, lt=1.0)] = 0.8
    num_perm: Annotated[int, Field(ge=16, le=1024)] = 128
    ngram: Annotated[int, Field(ge=1, le=32)] = 5


class Clean(Section):
    """Rules that remove pretraining text, and normalisation of the rest; all off by default."""

    unicode: Literal["nfc", "ftfy"] | None = None
    whitespace: bool = False
    personal_data: PersonalData = PersonalData()
    min_characters: Positive | None = None
    max_characters: Positive | None = None
    languages: (
        Annotated[list[Annotated[str, Field(pattern="^[a-z]{2,3}$")]], Field(min_length=1)] | None
    ) = None
    min_language_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.65
    gopher_quality: GopherQuality = GopherQuality()
    gopher_repetition: GopherRepetition = GopherRepetition()
    c4: C4 = C4()
    decontaminate: bool = False
    exact_duplicates: bool = False
    near_duplicates: NearDuplicates | None = None
    duplicate_paragraphs: Positive | None = None

    @property
    def compares(self) -> bool:
        """True if a rule compares documents, which needs a first pass over all of them."""
        return bool(
            self.decontaminate
            or self.exact_duplicates
            or self.near_duplicates
            or self.duplicate_paragraphs
        )

    @property
    def active(self) -> bool:
        """True if any rule is on."""
        return self != Clean(min_language_probability=self.min_language_probability)

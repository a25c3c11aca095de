"""What a reason means, in words. Reasons are defined beside the filters that give them; here is how a person reads them."""

from __future__ import annotations

# Reason -> (what is said, how its value compares with its threshold). A reason of a user's own filter is said as it is.
WORDS: dict[str, tuple[str, str]] = {
    # reading
    "empty_field": ("A field that the row needs is missing or empty.", ""),
    "invalid_utf8": ("The record is not valid UTF-8.", ""),
    "nul_bytes": ("The record has NUL bytes, which no text has.", ""),
    "invalid_json": ("The line is no valid JSON.", ""),
    "invalid_csv": ("The line cannot be read as the format of its file.", ""),
    "not_an_object": ("The line is JSON, and no object with columns.", ""),
    "wrong_number_of_fields": (
        "The line has more or fewer fields than the header.",
        "{value} fields, and {threshold} are expected",
    ),
    "record_too_long": ("The record is larger than the recipe allows.", "{value} bytes, and {threshold} are allowed"),
    "not_text": ("A field that must be a text is none.", ""),
    "not_a_number": ("A field that must be a number is none.", ""),
    "not_a_list": ("A column that must be a list, to be unpacked, is none.", ""),
    "unequal_lists": ("The lists that must be unpacked side by side are of different lengths.", ""),
    "unknown_id": ("A judgement names a text that is not there, or a text has no id.", ""),
    "invalid_python": ("The source of the module cannot be read as Python.", ""),
    "control_characters": ("A text has control characters, which no text needs.", ""),
    # texts that speak to the model that reads them
    "injection_override": ("The text tells a model to put its instructions aside.", ""),
    "injection_role": ("The text has tokens of a chat, or gives a model a new role.", ""),
    "injection_format": ("The text tells a model what to answer, or how.", ""),
    "injection_exfiltration": ("The text asks a model for its prompt, or for secrets.", ""),
    "injection_fence": ("The text pretends to be over, so that what follows looks like instructions.", ""),
    "injection_hidden": ("The text hides instructions for a model.", ""),
    "injection_foreign": ("The text tells a model, in another language, to put its instructions aside.", ""),
    # what a model wrote
    "empty_answer": ("The model wrote nothing.", ""),
    "request_refused": ("The model, or the server before it, would not take the prompt that has this text.", ""),
    "unparsable_answer": ("The model wrote nothing in the form that was asked for.", ""),
    "missing_field": ("The answer lacks one of the texts that were asked for.", ""),
    "no_words": ("There is no word in the text that the model wrote.", ""),
    "cut_off": ("The model ran out of tokens before the text was whole.", ""),
    "more_than_asked": ("The model wrote more than it was asked for.", ""),
    "repeated_in_answer": ("The model wrote the same twice.", ""),
    "copied_from_prompt": ("The model copied an example of the prompt.", ""),
    "copied_from_seed": ("The model copied the text that it was asked about.", ""),
    "negative_is_positive": ("The hard negative that the model wrote is the query or the positive.", ""),
    "unknown_label": ("The model named none of the classes, or several.", ""),
    "bad_score": ("The score that the model wrote is no number from 0 to 1.", ""),
    "prompt_leak_in_answer": ("The text that the model wrote shows the prompt, or gives instructions to a model.", ""),
    # length
    "query_too_short": ("The query is too short.", "length {value}, and at least {threshold} is asked for"),
    "query_too_long": ("The query is too long.", "length {value}, and at most {threshold} is allowed"),
    "document_too_short": ("The document is too short.", "length {value}, and at least {threshold} is asked for"),
    "document_too_long": ("The document is too long.", "length {value}, and at most {threshold} is allowed"),
    # language and content
    "wrong_language": ("The query is in a language that the recipe does not allow.", "{detail}, with confidence {value}"),
    "wrong_positive_language": (
        "The document is in a language that the recipe does not allow.",
        "{detail}, with confidence {value}",
    ),
    "unknown_language": ("The text is too short, or too mixed, to tell its language.", "confidence {value}"),
    "code_switched": ("The text changes its language on the way.", "share {value}, and {threshold} is allowed"),
    "toxic": ("The text is toxic.", "{detail}: {value}, and at most {threshold} is allowed"),
    "repetitive": ("The text repeats itself.", "{value} of its words are repeated, and {threshold} is allowed"),
    "symbols": ("The query is made of symbols more than of words.", "share {value}, and {threshold} is allowed"),
    "lorem_ipsum": ("The text is a filler.", ""),
    "javascript": ("The text asks for JavaScript.", ""),
    "curly_brackets": ("The document has curly brackets as code has.", "share {value}, and {threshold} is allowed"),
    "no_terminal_punctuation": (
        "The lines of the document are no sentences.",
        "{value} of the longer ones end in a full stop, and at least {threshold} is asked for",
    ),
    "word_length": (
        "The words are too short or too long for a text.",
        "{value} characters on average, and the bound is {threshold}",
    ),
    "symbol_ratio": ("The text has too many hashes or ellipses.", "{value} for each word, and {threshold} is allowed"),
    "few_alphabetic_words": (
        "Too few words of the text have a letter.",
        "share {value}, and at least {threshold} is asked for",
    ),
    "bullet_lines": ("The document is a list.", "{value} of its lines begin with a bullet, and {threshold} is allowed"),
    "ellipsis_lines": ("The lines of the document break off.", "{value} of them, and {threshold} is allowed"),
    "duplicate_lines": ("The document repeats lines.", "{value} of them, and {threshold} is allowed"),
    "duplicate_line_characters": (
        "The document repeats lines.",
        "{value} of its characters, and {threshold} is allowed",
    ),
    "duplicate_paragraphs": ("The document repeats paragraphs.", "{value} of them, and {threshold} is allowed"),
    "duplicate_paragraph_characters": (
        "The document repeats paragraphs.",
        "{value} of its characters, and {threshold} is allowed",
    ),
    "few_stop_words": (
        "The document lacks the small words that prose has.",
        "{value} different ones, and at least {threshold} is asked for",
    ),
    **{
        f"top_{n}_gram": (
            f"One sequence of {n} words takes up much of the document.",
            "{value} of its characters, and {threshold} is allowed",
        )
        for n in (2, 3, 4)
    },
    **{
        f"duplicate_{n}_grams": (
            f"Sequences of {n} words repeat in the document.",
            "{value} of its characters, and {threshold} is allowed",
        )
        for n in (5, 6, 7, 8, 9, 10)
    },
    "low_quality": (
        "A trained classifier finds the row poor.",
        "quality {value}, and at least {threshold} is asked for",
    ),
    "boilerplate": ("The text is boilerplate of a web page.", ""),
    "prompt_leak": ("The query repeats words of the prompt that it was written for.", ""),
    "query_is_positive": ("The query is the document itself, or most of it.", "{value} of it"),
    "not_retrieved": ("The query does not find its own document.", "rank {value}, and {threshold} or better is asked for"),
    "inconsistent": (
        "The query and the document mean different things.",
        "cosine {value}, and at least {threshold} is asked for",
    ),
    "personal_data": ("The row has personal data.", ""),
    "secret": ("The row has a key, a token or a password.", ""),
    "judged_irrelevant": (
        "A judge finds that the document does not match the query.",
        "score {value}, and {threshold} is asked for",
    ),
    "judged_poor": ("A judge finds that the row is not worth learning from.", "score {value}, and {threshold} is asked for"),
    "judge_injection": ("A text of the row gives instructions to the model that reads it.", ""),
    "judge_unparsable": ("The judge's answer has no score.", ""),
    # duplicates, the split, and evaluation sets
    "exact_duplicate": ("Another row says the same.", ""),
    "near_duplicate": ("Another row says nearly the same.", "similarity {value}, and {threshold} makes a duplicate"),
    "semantic_duplicate": ("Another row means the same.", "similarity {value}, and {threshold} makes a duplicate"),
    "positive_on_other_side": (
        "The document is a text of the class that is on the other side of the split than the query.",
        "",
    ),
    "contaminated_exact": ("A text of the row is in an evaluation set.", ""),
    "contaminated_ngram": ("A text of the row holds one of an evaluation set.", "{value} of it, and {threshold} is a hit"),
    "contaminated_semantic": (
        "A text of the row means what one of an evaluation set does.",
        "similarity {value}, and {threshold} is a hit",
    ),
}


def in_words(reason: str, value: float | None = None, threshold: float | None = None, detail: str | None = None) -> str:
    """A sentence for a reason, with its numbers and its detail where it has them."""
    sentence, comparison = WORDS.get(reason, (f"{reason}.", "value {value}, threshold {threshold}"))
    known = {"value": value, "threshold": threshold, "detail": detail}
    if any(f"{{{name}}}" in comparison and found is None for name, found in known.items()):
        comparison = ""
    digits = next((digits for digits in range(3, 9) if number(value, digits) != number(threshold, digits)), 3)
    numbers = comparison.format(value=number(value, digits), threshold=number(threshold, digits), detail=detail)
    said = [text for text in (numbers, None if "{detail}" in comparison else detail) if text]
    return f"{sentence.removesuffix('.')} ({'; '.join(said)})." if said else sentence


def number(value: float | None, digits: int = 3) -> str:
    """A whole number as it is, another with so many significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.{digits}g}"

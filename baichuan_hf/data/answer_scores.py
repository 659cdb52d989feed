"""Exact match and F1 of an extracted answer, by the definitions of CMRC 2018 (Chinese) and SQuAD (English)."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence


Score = tuple[float, float]

# The list of CMRC's script, which leaves in the points and commas of numbers.
CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# A Chinese character; a word or number, with the points and commas within it; any other sign. NLTK's tokenizer, which
# CMRC's script has for what is not Chinese, leaves the point of an initial, and signs that are not ASCII, to the word.
CMRC_SEGMENT = re.compile(
    r"""[\u4e00-\u9fa5]
    | {letter}+ (?: [.,]+{letter}+ | \.(?=\s+{letter}) )*
    | \S""".replace("{letter}", r"[^\s\u4e00-\u9fa5!-/:-@\[-`{-~]"),
    re.VERBOSE,
)


def choose_score(questions: Sequence[str]) -> Callable[[str, Sequence[str]], Score]:
    """`score_cmrc` if most of the questions hold a Chinese character, else `score_squad`."""
    chinese = sum(bool(re.search(r"[\u4e00-\u9fa5]", question)) for question in questions)
    return score_cmrc if 2 * chinese > len(questions) else score_squad


def score_cmrc(prediction: str, answers: Sequence[str]) -> Score:
    """Exact match without punctuation, and the best F1 over the longest run of segments that both have in common.

    As cmrc2018_evaluate.py, whose word tokenizer for what is not Chinese (NLTK's) is a regular expression here.
    """

    def without_punctuation(text: str) -> str:
        return "".join(sign for sign in text.lower().strip() if sign not in CMRC_PUNCTUATION)

    plain = without_punctuation(prediction)
    exact = max(float(plain == without_punctuation(answer)) for answer in answers)
    segments = CMRC_SEGMENT.findall(plain)
    f1 = 0.0
    for answer in answers:
        golden = CMRC_SEGMENT.findall(without_punctuation(answer))
        # An unanswerable question, which CMRC does not have: as SQuAD scores it.
        common = _longest_common_run(segments, golden) if segments and golden else 0
        f1 = max(f1, 2 * common / (len(segments) + len(golden)) if segments or golden else 1.0)
    return exact, f1


def _longest_common_run(left: Sequence[str], right: Sequence[str]) -> int:
    longest, runs = 0, [0] * (len(right) + 1)
    for segment in left:
        runs = [0, *(runs[index] + 1 if segment == other else 0 for index, other in enumerate(right))]
        longest = max(longest, *runs)
    return longest


def score_squad(prediction: str, answers: Sequence[str]) -> Score:
    """Exact match and the best F1 over words, without case, punctuation and articles, as SQuAD's script."""

    def words(text: str) -> list[str]:
        plain = "".join(sign for sign in text.lower() if sign not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", plain).split()

    predicted = words(prediction)
    exact = max(float(predicted == words(answer)) for answer in answers)
    f1 = 0.0
    for answer in answers:
        golden = words(answer)
        common = sum((Counter(predicted) & Counter(golden)).values())
        f1 = max(f1, 2 * common / (len(predicted) + len(golden)) if predicted or golden else 1.0)
    return exact, f1

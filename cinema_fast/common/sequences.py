"""MRI sequences: what the names of views and channels say of them."""

import re
from collections.abc import Sequence
from functools import lru_cache

SEQUENCES = ("cine", "lge", "t1map", "t2map", "t2w", "t1w")
IN_WORDS = {"cine": "cine", "lge": "LGE", "t1map": "T1 map", "t2map": "T2 map", "t2w": "T2w", "t1w": "T1w"}

# sequence: its spellings, as regular expressions of words joined by _
_SPELLINGS = {
    "cine": "cine(mri)?|c0",
    "lge": "lge|de|psir|viability|late_?gad(olinium)?|(late|delayed)_?(gad(olinium)?_?)?enh(ancement)?",
    "t1map": "t1_?map(s|ping)?|native_?t1|t1_?native|(sh)?molli|sasha",
    "t2map": "t2_?map(s|ping)?",
    "t2w": "t2(?!_(star|map))|t2_?(w|weighted|tse|fse|stir)|stir|tirm",
    "t1w": "t1_?(w|weighted|tse|fse)",
}
# a way to read out, of cines above all; with the name of another sequence it is that one's (psir_ssfp)
_READ_OUTS = "b?ssfp|trufi|truefisp|fiesta|bffe"


@lru_cache(maxsize=1024)
def sequence_of(name: str) -> str | None:
    """The sequence of SEQUENCES that the name of a view or channel says as a word, in upper or lower case: `lge` of
    lge_sax, `t2w` of T2. Anything but letters and digits ends a word.

    None where the name says none, or two different ones. `t1` alone says none, because it is as often a map as an image
    (t1map, t1w); `t2` alone is T2-weighted, as in MyoPS and MS-CMRSeg. T2* is neither t2w nor t2map.
    """
    words = "_".join(re.findall("[a-z0-9]+", name.lower().replace("*", "_star")))
    said = [sequence for sequence, spellings in _SPELLINGS.items() if _says(words, spellings)]
    if not said and _says(words, _READ_OUTS):
        return "cine"
    return said[0] if len(said) == 1 else None


def _says(words: str, spellings: str) -> bool:
    return re.search(rf"(^|_)({spellings})(_|$)", words) is not None


@lru_cache(maxsize=1024)
def sequences_of(view: str, channels: Sequence[str] = ()) -> tuple[str | None, ...]:
    """The sequence of each channel of a view; of a view without channels that of all its frames, (one,).

    channels: a tuple. Several channels are named after their sequences, a single volume by its view: the other of the
    two names counts where the first says none. Frames over time are a cine where the view's name says no other
    sequence; a volume is of an unknown one, None.
    """
    of_view = sequence_of(view)
    if not channels:
        return (of_view or "cine",)
    if len(channels) == 1:
        return (of_view or sequence_of(channels[0]),)
    return tuple(sequence_of(name) or of_view for name in channels)

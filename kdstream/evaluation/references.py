"""Reference alignments from files: the times at which the words of a test set end.  latency.py measures against them.

There are two kinds of file: `*.alignment.txt`, as LibriSpeech's alignments are released, and Lhotse manifests of cuts
or supervisions with `alignment["word"]`, which kdstream align writes too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from lhotse import load_manifest_lazy
from lhotse.cut import Cut
from lhotse.recipes.librispeech import parse_alignments
from lhotse.supervision import AlignmentItem

from kdstream.data.cuts import UNREADABLE, text_of
from kdstream.errors import UserError, option
from kdstream.words import split_words

TEXT_SUFFIX = ".alignment.txt"  # of LibriSpeech's
WORD = "word"  # Lhotse's name of this kind of alignment


def read_word_ends(
    paths: Sequence[Path], cuts: Iterable[Cut], words_of: Callable[[str], list[str]] = split_words
) -> dict[str, list[float]]:
    """The end of each word of the cuts' transcripts, in milliseconds from the cut's start, by cut id.

    An alignment belongs to the cut that has its id, or whose supervision has it, if the letters are the same; case does
    not count.  Cuts without an alignment are left out, and the log says how many there are.

    Args:
      paths: files, or directories that are searched for *.alignment.txt.
      words_of: the words of a text, as they are scored.
    Raises:
      UserError: a file of another kind, or no alignment of any of these cuts.
    """
    cuts, by_id = list(cuts), {}
    for cut in cuts:
        by_id.update({supervision.id: cut for supervision in cut.supervisions}, **{cut.id: cut})
    ends: dict[str, list[float]] = {}
    for path in paths:
        for names, start, items in _alignments(path):
            cut = next((by_id[name] for name in names if name in by_id), None)
            words = [item for item in items if item.symbol]  # the others are silence
            found = _word_ends(words, words_of(text_of(cut)), words_of) if cut else None
            if cut and found is not None:
                delay = cut.supervisions[0].start - start
                ends[cut.id] = [round(1000 * (end + delay), 3) for end in found]
    shown = ",".join(map(str, paths))
    if not ends:
        problem = f"has none of this test set with the same words, e.g. not {cuts[0].id}"
        raise UserError(problem, flag=option("alignments", shown), fix="name those that kdstream align writes of it")
    missing = [cut.id for cut in cuts if cut.id not in ends]
    if missing:
        logging.warning(f"{shown}: {len(missing)} of {len(cuts)} cuts have no alignment there, such as {missing[0]}")
    return ends


def _word_ends(
    items: Sequence[AlignmentItem], words: Sequence[str], words_of: Callable[[str], list[str]]
) -> list[float] | None:
    """When each word ends, in seconds; None where the items have other letters.

    Where an item holds several words, as in Chinese, its letters last equally long.
    """
    letters, ends = "", []  # of all items
    for item in items:
        spelled = "".join(words_of(item.symbol)).casefold()
        letters += spelled
        ends += [item.end - item.duration * left / len(spelled) for left in reversed(range(len(spelled)))]
    folded = [word.casefold() for word in words]
    if letters != "".join(folded):
        return None
    return [ends[place - 1] for place in accumulate(map(len, folded))]


def _alignments(path: Path) -> Iterator[tuple[tuple[str, ...], float, list[AlignmentItem]]]:
    """For each utterance in a file or below a directory: its ids, the start of its supervision, and its words.

    Lhotse counts the times of words from the start of the recording, in cuts too.
    """
    if path.is_dir():
        for file in sorted(path.rglob(f"*{TEXT_SUFFIX}")):
            yield from _alignments(file)
        return
    if not path.exists():
        fix = "name a file that kdstream align wrote, or a directory of LibriSpeech's"
        raise UserError("no such file", flag=option("alignments", path), fix=fix)
    try:
        if path.name.endswith(TEXT_SUFFIX):
            yield from (((name,), 0.0, items) for name, items in parse_alignments(path).items())
            return
        for item in load_manifest_lazy(path) or ():
            for supervision in item.supervisions if isinstance(item, Cut) else [item]:
                start = item.start + supervision.start if isinstance(item, Cut) else item.start
                yield (item.id, supervision.id), start, (supervision.alignment or {}).get(WORD, [])
    except UNREADABLE as error:
        fix = f"give LibriSpeech's *{TEXT_SUFFIX} or what kdstream align wrote"
        raise UserError(f"not a file of alignments ({error})", flag=option("alignments", path), fix=fix) from error

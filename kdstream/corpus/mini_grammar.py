"""The sentences of the embedded corpus.

Streaming costs something here by design.  Most sentences hold a word whose sound has two spellings (SUN or SON, PLANE
or PLAIN, THERE or THEIR, TO or TWO, FOR TEA or FORTY, ICE CREAM or I SCREAM), and only the words after it tell which
one is right.  A recogniser that hears the whole sentence can know, one that must write at once has to guess.  Other
words begin like longer ones (CAR and CARPET, FIFTEEN and FIFTY), which makes a streaming recogniser late.
"""

from __future__ import annotations

import random
import re

# Two spellings of one sound, each with the words that may follow it and tell it from the other.
HOMOPHONES: tuple[tuple[str, list[str], str, list[str]], ...] = (
    ("sun", ["rose", "set", "shone", "warmed {them}"], "son", ["laughed", "helped {them}", "slept", "cried"]),
    ("flower", ["bloomed", "opened", "smelled sweet", "needed water"], "flour", ["spilled", "went into the bread"]),
    ("knight", ["rode away", "drew his sword", "fought"], "night", ["was dark", "was cold", "was long", "fell"]),
    ("sail", ["was torn", "came down", "filled with air"], "sale", ["begins", "ends", "made {them} rich"]),
    ("tail", ["wagged", "moved", "hung down"], "tale", ["made {them} laugh", "ended well", "was told"]),
    ("plane", ["landed", "took off", "flew away"], "plain", ["stretched for miles", "was empty", "was dry"]),
    ("hare", ["jumped", "ran away", "hid"], "hair", ["was brushed", "was cut", "turned gray"]),
    ("pear", ["tasted sweet", "was ripe", "was eaten"], "pair", ["danced", "walked home", "sang"]),
    ("piece", ["was missing", "broke off", "was lost"], "peace", ["lasted", "was signed", "came at last"]),
    ("cellar", ["flooded", "was damp", "was locked"], "seller", ["smiled", "asked for money", "counted"]),
)

RULES: dict[str, list[str]] = {
    "sentence": [
        "{when} the {homophone} {tail}",
        "{when} the {homophone} {tail}",
        "the {homophone} {tail}",
        "the {homophone} and then the {homophone}",
        "the {homophone} and then the {homophone}",
        "the {homophone} but the {homophone}",
        "the {homophone} but the {homophone}",
        "{person} said the {homophone} {tail}",
        "{person} thought the {homophone} {tail}",
        "there {be} {count} {things} {place}",
        "their {thing} was {place} {time}",
        "their {thing} and the {thing} {be_lost}",
        "{when} there was a {adjective} {thing} {place}",
        "{person} wanted to {action} {time}",
        "{person} wanted two {adjective} {things}",
        "{person} wanted {count} {things} too",
        "{person} went to {action} with two {things}",
        "{person} came for tea and cake {time}",
        "{person} came forty miles to {action}",
        "{person} bought forty {adjective} {things}",
        "{person} stayed for tea {place}",
        "i scream when {person} {see} a {thing}",
        "ice cream and {food} tasted good {time}",
        "i scream because the {homophone}",
        "ice cream is cold and {person} {like} it",
        "{person} know the {adjective} {thing} {place}",
        "{person} no longer {action} {time}",
        "please write a letter to {person} {time}",
        "please write about the {adjective} {thing}",
        "right after lunch {person} began to {action}",
        "right {place} {person} found {count} {things}",
        "{person} ate {food} and {food} {time}",
        "eight {things} {be_lost} {place}",
        "{person} put the {thing} {place}",
        "the {adjective} {thing} costs {count} dollars",
    ],
    "tail": ["{time}", "{place}", "{place}", "{time}", "and {person} went home"],
    "when": ["today", "in the morning", "at last", "after lunch", "on {day}", "in the {season}", "yesterday"],
    "time": ["on {day}", "in the {season}", "at night", "before lunch", "again", "this morning", "for {count} days"],
    "day": ["monday", "tuesday", "friday", "sunday"],
    "season": ["winter", "summer", "evening"],
    "place": [
        "in the {room}",
        "behind the {room}",
        "near the {room}",
        "by the window",
        "on the hill",
        "under the bridge",
        "beside the road",
        "by the sea",
        "in the {adjective} {room}",
    ],
    "room": ["kitchen", "garden", "school", "market", "village", "hotel", "station", "forest"],
    "person": [
        "they",
        "we",
        "the children",
        "my sister and i",
        "the doctors",
        "the farmers",
        "my brothers",
        "the teachers",
        "you",
    ],
    "them": ["us", "everybody", "the children", "the farmers"],
    "count": ["fifteen", "fifty", "thirteen", "thirty", "sixteen", "sixty", "three", "five", "seven", "ten"],
    "be": ["were"],
    "be_lost": ["were lost", "were found", "were broken", "were gone"],
    "see": ["see", "drop", "break"],
    "like": ["like", "love", "enjoy"],
    "thing": ["car", "carpet", "pen", "pencil", "candle", "window", "letter", "basket", "table", "ticket", "camera"],
    "things": ["cars", "carpets", "pens", "pencils", "candles", "windows", "letters", "baskets", "tables", "tickets"],
    "adjective": ["old", "golden", "green", "little", "wooden", "yellow", "heavy", "open", "broken", "beautiful"],
    "food": ["bread", "butter", "apples", "chicken", "pepper", "potatoes", "soup", "cheese"],
    "action": [
        "swim",
        "sing",
        "play outside",
        "work {place}",
        "visit the {room}",
        "paint the {thing}",
        "carry the {things}",
        "travel",
    ],
}


def make_sentence(rng: random.Random) -> str:
    """One sentence in upper case, without punctuation."""
    return " ".join(_expand("{sentence}", rng).upper().split())


def _expand(text: str, rng: random.Random) -> str:
    return re.sub(r"{(\w+)}", lambda slot: _expand(_choose(slot.group(1), rng), rng), text)


def _choose(symbol: str, rng: random.Random) -> str:
    if symbol != "homophone":
        return rng.choice(RULES[symbol])
    word, continuations, other, other_continuations = rng.choice(HOMOPHONES)
    if rng.random() < 0.5:
        word, continuations = other, other_continuations
    return f"{word} {rng.choice(continuations)}"


def make_parts(seed: int, sizes: dict[str, int]) -> dict[str, list[str]]:
    """Different sentences for every part.

    Args:
      sizes: the number of sentences of each part.  A part depends on the parts before it alone: with training last, the
        test set stays the same, however much training speech is wanted.
    """
    used = set()
    parts: dict[str, list[str]] = {}
    for name, size in sizes.items():
        rng = random.Random(f"{seed} {name}")
        sentences: list[str] = []
        while len(sentences) < size:
            sentence = make_sentence(rng)
            if sentence not in used and 5 <= len(sentence.split()) <= 13:
                used.add(sentence)
                sentences.append(sentence)
        parts[name] = sentences
    return parts

#!/usr/bin/env bash
# asr-decoder 0.1.2: by default clear tokens after a hotword are dropped at the end, and the order of hotwords decides.
#
# Expected: CTCDecoder(hotwords, symbols).ctc_prefix_beam_search helps hotwords against what sounds alike, in any order;
#   what is clear stays as it is, whether an utterance comes in one call or in parts.  Where it ends within a hotword,
#   the bonus is taken back ("backoff ... when the context is not fully matched at the last time").  Times count from 0.
# Happens: a hotword has twice its bonus (by default 6 per token) until another token follows or the call ends.  So up
#   to two tokens of 0.99 after it are lost where the utterance ends: "北京动大" with the hotword 北京 is "北京".  In parts of
#   4 frames it is right.  A hotword with which one earlier in the list begins (北京 after 北京大学) keeps no bonus, and is
#   not found; in the other order it is.  The bonus of a hotword's beginning is not taken back at the end.  Times count
#   from 1, and are those of a token's last frame, even if another is likelier.  Nothing is raised or logged.
# So: set context_score to 1 or 2, sort hotwords by length, the shortest first, and take a frame off all times.
#
#   bash findings/asr-decoder-hotwords.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   asr-decoder 0.1.2, torch 2.14.1
#   said 北京动, no hotword: 北京动
#   said 北京动, hotword 北京: 北京
#   said 北京动, hotword 北京, 4 frames at once: 北京动
#   said 北京动大, no hotword: 北京动大
#   said 北京动大, hotword 北京: 北京
#   said 北京动大, hotword 北京, 4 frames at once: 北京动大
#   said 北京动大学, no hotword: 北京动大学
#   said 北京动大学, hotword 北京: 北京动大学
#   said 北京动大学, hotword 北京, 4 frames at once: 北京动大学
#   said 动大北京, no hotword: 动大北京
#   said 动大北京, hotword 北京: 动大北京
#   said 动大北京, hotword 北京, 4 frames at once: 动大北京
#   北, 动 (0.7) or 京 (0.25), 上; hotwords none, score 1.5: 北动上
#   北, 动 (0.7) or 京 (0.25), 上; hotwords 北京, score 1.5: 北京上
#   北, 动 (0.7) or 京 (0.25), 上; hotwords 北京 北京大学, score 1.5: 北京上
#   北, 动 (0.7) or 京 (0.25), 上; hotwords 北京大学 北京, score 1.5: 北动上
#   京 (0.6) or 北 (0.3); hotwords none, score 1.5: 京
#   京 (0.6) or 北 (0.3); hotwords 北京, score 1.5: 北
#   times of a token in frame 0 and one in 2 to 4, likeliest in 3: [1, 5]
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check asr-decoder==0.1.2 torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Probabilities of few symbols, decoded with and without hotwords."""

import sys
from importlib.metadata import version

import torch
from asr_decoder import CTCDecoder

BLANK, *SYMBOLS = "-北京大学动上"
NUMBERS = {symbol: number for number, symbol in enumerate((BLANK, *SYMBOLS))}
BEIJING, UNIVERSITY = "北京", "北京大学"


def frames(*likely):
    """Log-probabilities: symbols that a frame does not give have 1e-6 or less, and the blank has the rest."""
    table = (1e-6 / torch.arange(1, len(NUMBERS) + 1)).repeat(len(likely), 1)
    for row, given in zip(table, likely):
        for symbol, probability in given.items():
            row[NUMBERS[symbol]] = probability
        row[0] = 1 - row[1:].sum()
    return table.log()


def clear(text):
    """Each symbol has 0.99 in a frame of its own, and blanks are between them."""
    return frames(*({symbol: 0.99} if symbol != BLANK else {} for symbol in BLANK.join(f"{BLANK}{text}{BLANK}")))


def decode(log_probabilities, hotwords, at_once=1000, **options):
    decoder = CTCDecoder(hotwords, NUMBERS, **options)
    parts = log_probabilities.split(at_once)
    for number, part in enumerate(parts, 1):
        result = decoder.ctc_prefix_beam_search(part, beam_size=4, is_last=number == len(parts))
    return "".join((BLANK, *SYMBOLS)[token] for token in result["tokens"][0])


def show(what, found, stated):
    print(f"{what}: {found}")
    agree.append(found == stated)


agree = []
print(f"asr-decoder {version('asr-decoder')}, torch {version('torch')}")
for said, stated in (("北京动", "北京"), ("北京动大", "北京"), ("北京动大学", "北京动大学"), ("动大北京", "动大北京")):
    show(f"said {said}, no hotword", decode(clear(said), None), said)
    show(f"said {said}, hotword 北京", decode(clear(said), [BEIJING]), stated)
    show(f"said {said}, hotword 北京, 4 frames at once", decode(clear(said), [BEIJING], at_once=4), said)

unsure = {"动": 0.7, "京": 0.25}
middle = frames({}, {"北": 0.99}, {}, unsure, {}, {"上": 0.99}, {})
for hotwords, stated in (
    (None, "北动上"),
    ([BEIJING], "北京上"),
    ([BEIJING, UNIVERSITY], "北京上"),
    ([UNIVERSITY, BEIJING], "北动上"),
):
    found = decode(middle, hotwords, context_score=1.5)
    show(f"北, 动 (0.7) or 京 (0.25), 上; hotwords {' '.join(hotwords or ['none'])}, score 1.5", found, stated)
end = frames({}, {"京": 0.6, "北": 0.3}, {}, {})
for hotwords, stated in ((None, "京"), ([BEIJING], "北")):
    found = decode(end, hotwords, context_score=1.5)
    show(f"京 (0.6) or 北 (0.3); hotwords {' '.join(hotwords or ['none'])}, score 1.5", found, stated)
peaks = frames({"北": 0.99}, {}, {"京": 0.6}, {"京": 0.9}, {"京": 0.7}, {})
times = CTCDecoder().ctc_greedy_search(peaks, is_last=True)["times"]
show("times of a token in frame 0 and one in 2 to 4, likeliest in 3", times, [1, 5])
print("as stated" if all(agree) else "CHANGED: not as the head of this script states")
sys.exit(not all(agree))
PYTHON

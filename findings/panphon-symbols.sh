#!/usr/bin/env bash
# panphon 0.22.2: the r of American English, affricates in one character and g from the keyboard count for nothing.
#
# Expected: phoneme_error_rate and the distances of features count each phoneme that a transcript has.  A symbol that
#   the table lacks costs an error, or raises.
# Happens: a symbol that the table lacks is left out of both sides.  It lacks ɚ and ɝ, the vowels of "letter" and
#   "bird", in which many American dictionaries have them; ʤ, ʧ, ʦ and ʣ, though it has d͡ʒ; and g
#   (U+0067), though it has ɡ (U+0261).  "bɝd" against "bd" has 0 % errors, and so has each word that lost such a sound.
#   They are missing among the phones that errors are divided by, too.  Its own table of X-SAMPA gives ɚ and ɝ.  Nothing
#   is raised or warned of.
# So: replace them before: ɚ by əɹ, ɝ by ɜɹ, ʤ by d͡ʒ, g by ɡ; and compare "".join(ipa_segs(word)) to the word.
#
#   bash findings/panphon-symbols.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   panphon 0.22.2: phoneme error rate, feature error rate, and the segments of the reference
#   bɜɹd against bd: 50 %, 46 %, b ɜ ɹ d
#   bɝd against bd: 0 %, 0 %, b d
#   lɛtəɹ against lɛt: 40 %, 37 %, l ɛ t ə ɹ
#   lɛtɚ against lɛt: 0 %, 0 %, l ɛ t
#   d͡ʒʌmp against ʌmp: 25 %, 23 %, d͡ʒ ʌ m p
#   ʤʌmp against ʌmp: 0 %, 0 %, ʌ m p
#   ɡʊd against ʊd: 33 %, 31 %, ɡ ʊ d
#   gʊd against ʊd: 0 %, 0 %, ʊ d
#   not in the table: ɚ ɝ ʤ ʧ ʦ ʣ g
#   its X-SAMPA gives: ɚɝ
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  panphon==0.22.2 numpy==2.4.6 pandas==3.1.1 editdistance==0.8.1 munkres==3.0.0 PyYAML==6.0.4 regex==2026.11.19 \
  setuptools==65.5.0 unicodecsv==0.14.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Words that lost one sound, in the symbols that panphon has and in those that it lacks."""

import sys
from importlib.metadata import version

import panphon.distance
import panphon.xsampa

WORDS = {  # with the sound and without it, and the phoneme error rate in percent
    "bɜɹd": ("bd", 50),
    "bɝd": ("bd", 0),
    "lɛtəɹ": ("lɛt", 40),
    "lɛtɚ": ("lɛt", 0),
    "d͡ʒʌmp": ("ʌmp", 25),
    "ʤʌmp": ("ʌmp", 0),
    "\u0261ʊd": ("ʊd", 33),
    "\u0067ʊd": ("ʊd", 0),
}

distance = panphon.distance.Distance()
print(f"panphon {version('panphon')}: phoneme error rate, feature error rate, and the segments of the reference")
as_stated = True
for reference, (hypothesis, stated) in WORDS.items():
    phonemes = 100 * distance.phoneme_error_rate([hypothesis], [reference])
    features = 100 * distance.feature_error_rate([hypothesis], [reference])
    segments = " ".join(distance.fm.ipa_segs(reference))
    print(f"{reference} against {hypothesis}: {phonemes:.0f} %, {features:.0f} %, {segments}")
    as_stated &= round(phonemes) == stated and (features > 0) == (stated > 0)
lacking = [symbol for symbol in "ɚɝʤʧʦʣ\u0067\u0261ɹʒ" if not distance.fm.ipa_segs(symbol)]
print(f"not in the table: {' '.join(lacking)}")
xsampa = panphon.xsampa.XSampa().convert("@` 3`")
print(f"its X-SAMPA gives: {xsampa}")
as_stated &= lacking == [*"ɚɝʤʧʦʣ\u0067"] and set("ɚɝ") <= set(xsampa)
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON

#!/usr/bin/env bash
# uroman 1.3.1.1: characters of Chinese numbers become digits inside words too, and 二〇二四 loses its noughts.
#
# Expected: uroman writes 三 as 3 where it is a number, as "digital numbers in various scripts" in its readme, and in
#   words as it sounds: 星期三 (Wednesday) is xingqisan.  The digits of a year stay together: 二〇二四 is 2024.
# Happens: 一 to 九, 十, 百 and 千 become a number in nearly every word, and 万 does beside them: 一起 (together) is "1qi",
#   四川 (Sichuan) "4chuan", 十分 (very) "10fen", 万一 (in case) "11000", and Japanese 一緒 "1xu".  A few words, as 百度,
#   are spared.  〇 alone is 0, but between other digits a middle dot: 二〇二四年 is "2·2·4nian".  The language code zho
#   changes nothing.
#   Aligners with MMS's letters (a to z and the apostrophe), which want this romanisation, drop digits: a word 三 has
#   nothing left to align, and 一起 is aligned as "qi".
# So: before uroman, write these characters in Chinese as pinyin (yi, er, san ...), and count words that have no letter.
#
#   bash findings/uroman-numbers.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   uroman 1.3.1.1: as it is, and the letters that MMS has
#   百度: baidu: baidu
#   星期三: xingqi3: xingqi
#   一起: 1qi: qi
#   四川: 4chuan: chuan
#   十分: 10fen: fen
#   万一: 11000: -
#   一緒: 1xu: xu
#   王 三 来 了: wang 3 lai le: wang - lai le
#   〇: 0: -
#   二〇二四年: 2·2·4nian: nian
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uroman==1.3.1.1 regex==2026.11.19
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""Words with and without characters of numbers, and the letters of MMS that are left of them."""

import re
import sys
from importlib.metadata import version

import uroman

STATED = {
    "百度": "baidu",  # no number: the exceptions are few
    "星期三": "xingqi3",
    "一起": "1qi",
    "四川": "4chuan",
    "十分": "10fen",
    "万一": "11000",
    "一緒": "1xu",
    "王 三 来 了": "wang 3 lai le",
    "〇": "0",
    "二〇二四年": "2·2·4nian",
}

romaniser = uroman.Uroman()
print(f"uroman {version('uroman')}: as it is, and the letters that MMS has")
as_stated = True
for text, stated in STATED.items():
    found = romaniser.romanize_string(text)
    letters = [re.sub("[^a-z']", "", word) for word in found.split()]
    print(f"{text}: {found}: {' '.join(word or '-' for word in letters)}")
    as_stated &= found == stated == romaniser.romanize_string(text, lcode="zho")
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON

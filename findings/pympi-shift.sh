#!/usr/bin/env bash
# pympi-ling 1.71: shift_annotations moves a time that two annotations share twice, so words end before they begin.
#
# Expected: eaf.shift_annotations(1000) makes all times of an ELAN file 1 s later, and with -1000 what lies before 0 is
#   "squashed or discarded", as its help says.
# Happens: in an .eaf file annotations refer to time slots, and neighbours may refer to the same one: where words divide
#   an utterance without gaps (ELAN's Time_Subdivision) the end of one is the slot of the next one's beginning.
#   The shift is added for each annotation, so it is added twice to these slots: "or" begins at 4.9 s and ends at 4.5 s.
#   And an annotation that is squashed at 0 keeps its old end: 0.6-1.2 s becomes 0-1.2 s, over the next one.
#   Nothing is raised, and to_file writes it so.
# So: add the shift to each value of eaf.timeslots once, and cut off at 0 oneself.
#
#   bash findings/pympi-shift.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   pympi-ling 1.71
#   as read: to 2.0-2.4, be 2.4-2.9, or 2.9-3.5
#   shift_annotations(1000): to 3.0-4.4, be 4.4-4.9, or 4.9-4.5
#   each slot once: to 3.0-3.4, be 3.4-3.9, or 3.9-4.5
#   slots of their own, as read: one 0.6-1.2, two 1.2-2.5
#   shift_annotations(1000): one 1.6-2.2, two 2.2-3.5
#   shift_annotations(-1000): one 0.0-1.2, two 0.2-1.5
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pympi-ling==1.71
cd "$folder"
cat >words.eaf <<'EAF'
<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2026-01-01T00:00:00+00:00" FORMAT="3.0" VERSION="3.0"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
    xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
  <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds"/>
  <TIME_ORDER>
    <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="2000"/>
    <TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="2000"/>
    <TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="2400"/>
    <TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="2900"/>
    <TIME_SLOT TIME_SLOT_ID="ts5" TIME_VALUE="3500"/>
    <TIME_SLOT TIME_SLOT_ID="ts6" TIME_VALUE="3500"/>
  </TIME_ORDER>
  <TIER LINGUISTIC_TYPE_REF="utterance" TIER_ID="utterances">
    <ANNOTATION>
      <ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts6">
        <ANNOTATION_VALUE>to be or</ANNOTATION_VALUE>
      </ALIGNABLE_ANNOTATION>
    </ANNOTATION>
  </TIER>
  <TIER LINGUISTIC_TYPE_REF="word" PARENT_REF="utterances" TIER_ID="words">
    <ANNOTATION>
      <ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts3">
        <ANNOTATION_VALUE>to</ANNOTATION_VALUE>
      </ALIGNABLE_ANNOTATION>
    </ANNOTATION>
    <ANNOTATION>
      <ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
        <ANNOTATION_VALUE>be</ANNOTATION_VALUE>
      </ALIGNABLE_ANNOTATION>
    </ANNOTATION>
    <ANNOTATION>
      <ALIGNABLE_ANNOTATION ANNOTATION_ID="a4" TIME_SLOT_REF1="ts4" TIME_SLOT_REF2="ts5">
        <ANNOTATION_VALUE>or</ANNOTATION_VALUE>
      </ALIGNABLE_ANNOTATION>
    </ANNOTATION>
  </TIER>
  <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="utterance" TIME_ALIGNABLE="true"/>
  <LINGUISTIC_TYPE CONSTRAINTS="Time_Subdivision" GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="word"
    TIME_ALIGNABLE="true"/>
  <CONSTRAINT DESCRIPTION="Time subdivision of parent annotation's time interval, no time gaps allowed"
    STEREOTYPE="Time_Subdivision"/>
</ANNOTATION_DOCUMENT>
EAF
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Words that share time slots, and words that do not, are shifted, written and read."""

import sys
from importlib.metadata import version

from pympi import Eaf


def shared():
    return Eaf("words.eaf")


def separate():
    eaf = Eaf()
    eaf.add_tier("words")
    eaf.add_annotation("words", 600, 1200, "one")
    eaf.add_annotation("words", 1200, 2500, "two")
    return eaf


def shift_slots(eaf, time):
    for slot in eaf.timeslots:
        eaf.timeslots[slot] += time


def words(eaf):
    eaf.to_file("shifted.eaf")
    found = sorted(Eaf("shifted.eaf").get_annotation_data_for_tier("words"))
    return ", ".join(f"{word} {start / 1000:.1f}-{end / 1000:.1f}" for start, end, word in found)


print(f"pympi-ling {version('pympi-ling')}")
as_stated = True
for what, make, change, time, stated in (
    ("as read", shared, None, 0, "to 2.0-2.4, be 2.4-2.9, or 2.9-3.5"),
    ("shift_annotations(1000)", shared, Eaf.shift_annotations, 1000, "to 3.0-4.4, be 4.4-4.9, or 4.9-4.5"),
    ("each slot once", shared, shift_slots, 1000, "to 3.0-3.4, be 3.4-3.9, or 3.9-4.5"),
    ("slots of their own, as read", separate, None, 0, "one 0.6-1.2, two 1.2-2.5"),
    ("shift_annotations(1000)", separate, Eaf.shift_annotations, 1000, "one 1.6-2.2, two 2.2-3.5"),
    ("shift_annotations(-1000)", separate, Eaf.shift_annotations, -1000, "one 0.0-1.2, two 0.2-1.5"),
):
    eaf = make()
    if change:
        change(eaf, time)
    seen = words(eaf)
    print(f"{what}: {seen}")
    as_stated &= seen == stated
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON

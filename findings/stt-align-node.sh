#!/usr/bin/env bash
# stt-align-node 2.0.1 (npm): a word that starts at 0 s is lost, and corrected words get a wrong time or no duration.
#
# Expected: alignSTT(words, text) gives each word of a corrected text a time from a recognizer's words.  Words that the
#   recognizer has too get its times, and the others times between their neighbours'.
# Happens: a word that starts at 0 s is not in the result, as so often the first one of a recording.  Where the
#   recognizer had two words and the text has four, all four get the first one's time, from start to end.  Words that it
#   lacks have no duration, and are late: of three in a gap the last starts where the next word starts.  At the end of
#   the text they all start at the end of the word before.  Words are compared by the letters a to z and digits alone.
#   In Cyrillic, Greek or Arabic all words are equal, so they get the times in their order, whatever they are: one word
#   that the recognizer missed at the start gives each later word its neighbour's time.  Nothing is raised or logged.
# So: add a millisecond to a start of 0, align other scripts with another tool, and take no times of corrected words.
#
#   bash findings/stt-align-node.sh    # needs node and npm; exits 1 if this has changed
#
# Output seen (Node 20.20.2, Linux x86-64):
#   stt-align-node 2.0.1
#   from 0 s: morning, 1-1.5, all. 2-2.5
#   from 0.001 s: Good 0-0.5, morning, 1-1.5, all. 2-2.5
#   two words, said four: We 1-1.5, wreck 2-2.5, a 2-2.5, nice 2-2.5, beach 2-2.5, here. 4-4.5
#   three lacking: All 1-1.5, of 2-2, my 2.5-2.5, friends 3-3, came. 3-3.5
#   two lacking at the end: It 1-1.5, is 2-2.5, very 2.5-2.5, nice. 2.5-2.5
#   English: Well, 0-1, I 1-1.5, know 2-2.5, her. 3-3.5
#   Russian: Ну, 1-1.5, я 2-2.5, знаю 3-3.5, её. 3.5-3.5
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" stt-align-node@2.0.1 >/dev/null
cat > align.cjs <<'JAVASCRIPT'
// Words of a recognizer, each with its start and end in seconds, the text that was said, and the times it gets.
const { alignSTT } = require('stt-align-node');
const { version } = require('stt-align-node/package.json');

const round = (seconds) => Math.round(seconds * 100) / 100;

// A word each second from the first one's start on, of half a second.
function spoken(text, first) {
  return text.split(' ').map((word, i) => ({ text: word, start: first + i, end: first + i + 0.5 }));
}

console.log(`stt-align-node ${version}`);
let asStated = true;
for (const [what, words, text, stated] of [
  ['from 0 s', spoken('good morning all', 0), 'Good morning, all.', 'morning, 1-1.5, all. 2-2.5'],
  ['from 0.001 s', spoken('good morning all', 0.001), 'Good morning, all.', 'Good 0-0.5, morning, 1-1.5, all. 2-2.5'],
  [
    'two words, said four',
    spoken('we recognise speech here', 1),
    'We wreck a nice beach here.',
    'We 1-1.5, wreck 2-2.5, a 2-2.5, nice 2-2.5, beach 2-2.5, here. 4-4.5',
  ],
  [
    'three lacking',
    [...spoken('all', 1), ...spoken('came', 3)],
    'All of my friends came.',
    'All 1-1.5, of 2-2, my 2.5-2.5, friends 3-3, came. 3-3.5',
  ],
  ['two lacking at the end', spoken('it is', 1), 'It is very nice.', 'It 1-1.5, is 2-2.5, very 2.5-2.5, nice. 2.5-2.5'],
  ['English', spoken('I know her', 1), 'Well, I know her.', 'Well, 0-1, I 1-1.5, know 2-2.5, her. 3-3.5'],
  ['Russian', spoken('я знаю её', 1), 'Ну, я знаю её.', 'Ну, 1-1.5, я 2-2.5, знаю 3-3.5, её. 3.5-3.5'],
]) {
  const found = alignSTT({ words }, text).map(({ text, start, end }) => `${text} ${round(start)}-${round(end)}`);
  console.log(`${what}: ${found.join(', ')}`);
  asStated &= found.join(', ') === stated;
}
console.log(asStated ? 'as stated' : 'CHANGED: not as the head of this script states');
process.exit(asStated ? 0 : 1);
JAVASCRIPT
node align.cjs

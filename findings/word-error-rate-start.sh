#!/usr/bin/env bash
# word-error-rate 0.0.7 (npm): a first word said again is no error: "i i i think so" for "i think so" scores 0.
#
# Expected: calculateEditDistance(incoming, expected) is what its readme says, the Levenshtein distance in words, and
#   wordErrorRate that of the longer text's words.
# Happens: the table of distances begins with the first words, without the row and the column for no word.  There, each
#   word of one text that is the other's first word is free, however often one was taken.  What a recognizer stutters at
#   an utterance's start is no error, nor is all but one of "no no no" in "no".  "the cat" for "the dog and the cat"
#   has 2 errors of 5 words, not 3.  Nothing is ever counted too high: what differs otherwise is right.  Of random pairs
#   of 10 words, with an error for each five words, 1 % have too few.  Nothing is logged.
# So: put a word that is nowhere else before both texts, count the words without it, and divide the distance yourself.
#
#   bash findings/word-error-rate-start.sh    # needs node and npm; exits 1 if this has changed
#
# Output seen (Node 20.20.2, Linux x86-64):
#   word-error-rate 0.0.7
#   "i i i think so" for "i think so": 0 (0.00), with a word before: 2, Levenshtein: 2
#   "so i i i think" for "so i think": 2 (0.40), with a word before: 2, Levenshtein: 2
#   "no" for "no no no": 0 (0.00), with a word before: 2, Levenshtein: 2
#   "the cat" for "the dog and the cat": 2 (0.40), with a word before: 3, Levenshtein: 3
#   "i know" for "i think i know": 1 (0.25), with a word before: 2, Levenshtein: 2
#   "cat" for "the cat": 1 (0.50), with a word before: 1, Levenshtein: 1
#   random pairs: too low 0.9 %, too high 0.0 %, with a word before, wrong 0.0 %
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --prefix "$folder" word-error-rate@0.0.7 object-hash@1.3.1 >/dev/null
cat > score.cjs <<'JAVASCRIPT'
// Distances of some texts, and of random ones, next to those of a plain dynamic program.
const { calculateEditDistance, wordErrorRate } = require('word-error-rate');
const { version } = require('word-error-rate/package.json');

function distance(incoming, expected) {
  let row = Array.from({ length: expected.length + 1 }, (_, i) => i);
  for (const [i, word] of incoming.entries()) {
    const next = [i + 1];
    for (const [j, other] of expected.entries()) {
      next.push(Math.min(next[j] + 1, row[j + 1] + 1, row[j] + (word === other ? 0 : 1)));
    }
    row = next;
  }
  return row[expected.length];
}

console.log(`word-error-rate ${version}`);
let asStated = true;
for (const [incoming, expected, stated, right] of [
  ['i i i think so', 'i think so', 0, 2],
  ['so i i i think', 'so i think', 2, 2],
  ['no', 'no no no', 0, 2],
  ['the cat', 'the dog and the cat', 2, 3],
  ['i know', 'i think i know', 1, 2],
  ['cat', 'the cat', 1, 1],
]) {
  const found = calculateEditDistance(incoming, expected);
  const marked = calculateEditDistance(`| ${incoming}`, `| ${expected}`);
  const rate = wordErrorRate(incoming, expected).toFixed(2);
  const others = `with a word before: ${marked}, Levenshtein: ${right}`;
  console.log(`"${incoming}" for "${expected}": ${found} (${rate}), ${others}`);
  asStated &= found === stated && right === distance(incoming.split(' '), expected.split(' ')) && marked === right;
}
const WORDS = 'the a i of and to in that it is was for you he on with as be at'.split(' ');
let state = 1;
const random = () => (state = (state * 16807) % 2147483647) / 2147483647;
const word = () => WORDS[Math.floor(random() * WORDS.length)];
let [low, high, markedWrong] = [0, 0, 0];
const PAIRS = 20000;
for (let pair = 0; pair < PAIRS; pair++) {
  const expected = Array.from({ length: 10 }, word);
  const incoming = expected.flatMap((right) => {
    const chance = random();
    return chance < 0.05 ? [] : chance < 0.1 ? [right, word()] : chance < 0.2 ? [word()] : [right];
  });
  const right = distance(incoming, expected);
  const found = calculateEditDistance(incoming.join(' '), expected.join(' '));
  low += found < right;
  high += found > right;
  markedWrong += calculateEditDistance(['|', ...incoming].join(' '), ['|', ...expected].join(' ')) !== right;
}
const percent = (count) => `${((100 * count) / PAIRS).toFixed(1)} %`;
const wrong = `too low ${percent(low)}, too high ${percent(high)}`;
console.log(`random pairs: ${wrong}, with a word before, wrong ${percent(markedWrong)}`);
asStated &= Math.abs(low / PAIRS - 0.009) < 0.002 && high === 0 && markedWrong === 0;
console.log(asStated ? 'as stated' : 'CHANGED: not as the head of this script states');
process.exit(asStated ? 0 : 1);
JAVASCRIPT
node score.cjs

#!/usr/bin/env bash
# phonemize 2.0.1 (npm): its ARPABET is not CMU's: stress lies on consonants, and most words have symbols of its own.
#
# Expected: toARPABET(text) gives pronunciations in the "CMU ARPABET phoneme set with stress numbers (0,1,2)", as the
#   readme has it, so that they fit a lexicon, or an acoustic model, that has CMU's symbols.
# Happens: a stress number is at the first sound of the syllable, which is a consonant in 95 % of the words, and 0 is
#   nowhere: "cat" is K1 AE T.  Of 2350 words of CMU's dictionary six come out as they are there.  64 % have a symbol
#   that CMU does not have.  Each AO is SAW and each L is EL.  A vowel and the consonant after it may be one symbol, so
#   that "moon" is M1 UN, "machine" ends in IN, and "job" is JH1 AB.  Unstressed vowels are AX.  A few words have the
#   symbol "undefined".  One of the readme's two examples has EL1, the other L.  Nothing is raised or logged.
# So: take toIPA, whose output is right for these, and make ARPABET of that with a table of your own.
#
#   bash findings/phonemize-arpabet.sh    # needs node and npm; exits 1 if this has changed
#
# Output seen (Node 20.20.2, Linux x86-64):
#   phonemize 2.0.1
#   cat: K1 AE T, in CMU's dictionary K AE1 T, in IPA ˈkæt
#   water: W1 SAW T ER, in CMU's dictionary W AO1 T ER0, in IPA ˈwɔtɝ
#   light: EL1 AY T, in CMU's dictionary L AY1 T, in IPA ˈɫaɪt
#   moon: M1 UN, in CMU's dictionary M UW1 N, in IPA ˈmun
#   machine: M AX SH1 IN, in CMU's dictionary M AH0 SH IY1 N, in IPA məˈʃin
#   job: JH1 AB, in CMU's dictionary JH AA1 B, in IPA ˈdʒɑb
#   captivity: K AE P T1 IH V AX T IY, in CMU's dictionary K AE0 P T IH1 V AH0 T IY0, in IPA kæpˈtɪvəti
#   of 2350 words, same: 6
#   of 2350 words, another symbol: 1510
#   of 2350 words, stress on a consonant: 2228
#   of 2350 words, a 0: 0
#   of 2350 words, the symbol undefined: 5
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" \
  phonemize@2.0.1 cmu-pronouncing-dictionary@3.0.0 >/dev/null
cat > arpabet.cjs <<'JAVASCRIPT'
// Words in ARPABET and IPA, and how many of each fiftieth word of CMU's dictionary have its symbols.
const { toARPABET, toIPA } = require('phonemize');
const { version } = require('./node_modules/phonemize/package.json');

const VOWELS = 'AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW'.split(' ');
const CONSONANTS = 'B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH'.split(' ');

async function main() {
  const { dictionary } = await import('cmu-pronouncing-dictionary');
  console.log(`phonemize ${version}`);
  let asStated = true;
  for (const [word, stated] of [
    ['cat', 'K1 AE T'],
    ['water', 'W1 SAW T ER'],
    ['light', 'EL1 AY T'],
    ['moon', 'M1 UN'],
    ['machine', 'M AX SH1 IN'],
    ['job', 'JH1 AB'],
    ['captivity', 'K AE P T1 IH V AX T IY'],
  ]) {
    const found = toARPABET(word);
    console.log(`${word}: ${found}, in CMU's dictionary ${dictionary[word]}, in IPA ${toIPA(word)}`);
    asStated &= found === stated;
  }
  const words = Object.keys(dictionary).filter((word) => /^[a-z]+$/.test(word));
  const chosen = words.filter((_, i) => i % 50 === 0);
  const counts = { same: 0, 'another symbol': 0, 'stress on a consonant': 0, 'a 0': 0, 'the symbol undefined': 0 };
  for (const word of chosen) {
    const found = toARPABET(word);
    const symbols = found.replace(/\d/g, '').split(' ');
    const stressed = (found.match(/\w+\d/g) ?? []).map((symbol) => symbol.slice(0, -1));
    counts.same += found === dictionary[word];
    counts['another symbol'] += symbols.some((symbol) => ![...VOWELS, ...CONSONANTS].includes(symbol));
    counts['stress on a consonant'] += stressed.some((symbol) => !VOWELS.includes(symbol));
    counts['a 0'] += found.includes('0');
    counts['the symbol undefined'] += symbols.includes('undefined');
  }
  for (const [what, count] of Object.entries(counts)) console.log(`of ${chosen.length} words, ${what}: ${count}`);
  asStated &= Object.values(counts).join() === '6,1510,2228,0,5';
  console.log(asStated ? 'as stated' : 'CHANGED: not as the head of this script states');
  process.exit(asStated ? 0 : 1);
}

main();
JAVASCRIPT
node arpabet.cjs

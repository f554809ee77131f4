#!/usr/bin/env bash
# subsrt-ts 2.1.2, vtt-to-json 0.1.1 (npm): captions lose their first letter, and files of them their last caption.
#
# Expected: subsrt-ts reads .ass and .ssa files as it writes them, and as other programs do.  vtt-to-json gives each cue
#   of a WebVTT file with its words.
# Happens: subsrt-ts leaves out the first character of each caption of an .ass or .ssa file: "hello" is "ello", "I" is
#   nothing, and of a mark for italics the rest is text.  subsrt 1.1.1, from which it comes, does not.  With a space
#   before the text all is there.  vtt-to-json keeps the last cue only where no line break follows its text, which few
#   files have.  Each cue's number is a word at the end of the cue before, the first cue comes twice, once without its
#   text, and a line that repeats the caption before is left out: of "yes", "no", "no", "so" the third has no words.
#   Nothing is raised or logged.
# So: read .ass files with subsrt 1.1.1, and WebVTT with @plussub/srt-vtt-parser 2.0.5.
#
#   bash findings/npm-caption-readers.sh    # needs node and npm; exits 1 if this has changed
#
# Output seen (Node 20.20.2, Linux x86-64):
#   subsrt-ts 2.1.2
#   subsrt 1.1.1
#   vtt-to-json 0.1.1
#   subsrt-ts, .ass: ["ello, you","","\\i1}so it is","spaced"]
#   subsrt, .ass: ["hello, you","I","so it is","spaced"]
#   subsrt-ts, .ass of its own: ["ello"]
#   subsrt-ts, .ssa of its own: ["ello"]
#   vtt-to-json, the end of a line: ["one","","two"]
#   vtt-to-json, none: ["one","","two","three"]
#   vtt-to-json, numbers: ["one","2","two 3","three"]
#   vtt-to-json, repeated: ["yes","","no","","so"]
#   @plussub/srt-vtt-parser, all of it: ["yes","no","no","so"]
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" \
  subsrt-ts@2.1.2 subsrt@1.1.1 vtt-to-json@0.1.1 @plussub/srt-vtt-parser@2.0.5 >/dev/null
cat > captions.cjs <<'JAVASCRIPT'
// The texts of an .ass file and of WebVTT files, as they are read.
const { parse } = require('@plussub/srt-vtt-parser');
const subsrt = require('subsrt');
const subsrtTs = require('subsrt-ts');
const vttToJson = require('vtt-to-json');

const ASS = `[Script Info]
ScriptType: v4.00+

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,hello, you
Dialogue: 0,0:00:02.00,0:00:03.00,Default,,0,0,0,,I
Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,{\\i1}so{\\i0} it is
Dialogue: 0,0:00:04.00,0:00:05.00,Default,,0,0,0,, spaced
`;
const SRT = '1\n00:00:01,000 --> 00:00:02,000\nhello\n';
const texts = (captions) => captions.filter(({ type }) => type === 'caption').map(({ text }) => text.trim());

function vtt(cues, numbers, end) {
  const cue = (text, i) => `${numbers ? `${i + 1}\n` : ''}00:00:0${i + 1}.000 --> 00:00:0${i + 2}.000\n${text}`;
  return `WEBVTT\n\n${cues.map(cue).join('\n\n')}${end}`;
}

async function main() {
  for (const name of ['subsrt-ts', 'subsrt', 'vtt-to-json']) console.log(name, require(`${name}/package.json`).version);
  const words = async (...file) => (await vttToJson(vtt(...file))).map(({ part }) => part);
  const parsed = parse(vtt(['yes', 'no', 'no', 'so'], true, '\n')).entries.map(({ text }) => text);
  let asStated = true;
  for (const [what, found, stated] of [
    ['subsrt-ts, .ass', texts(subsrtTs.parse(ASS)), ['ello, you', '', '\\i1}so it is', 'spaced']],
    ['subsrt, .ass', texts(subsrt.parse(ASS)), ['hello, you', 'I', 'so it is', 'spaced']],
    ['subsrt-ts, .ass of its own', texts(subsrtTs.parse(subsrtTs.convert(SRT, { format: 'ass' }))), ['ello']],
    ['subsrt-ts, .ssa of its own', texts(subsrtTs.parse(subsrtTs.convert(SRT, { format: 'ssa' }))), ['ello']],
    ['vtt-to-json, the end of a line', await words(['one', 'two', 'three'], false, '\n'), ['one', '', 'two']],
    ['vtt-to-json, none', await words(['one', 'two', 'three'], false, ''), ['one', '', 'two', 'three']],
    ['vtt-to-json, numbers', await words(['one', 'two', 'three'], true, ''), ['one', '2', 'two 3', 'three']],
    ['vtt-to-json, repeated', await words(['yes', 'no', 'no', 'so'], false, ''), ['yes', '', 'no', '', 'so']],
    ['@plussub/srt-vtt-parser, all of it', parsed, ['yes', 'no', 'no', 'so']],
  ]) {
    console.log(`${what}: ${JSON.stringify(found)}`);
    asStated &= JSON.stringify(found) === JSON.stringify(stated);
  }
  console.log(asStated ? 'as stated' : 'CHANGED: not as the head of this script states');
  process.exit(asStated ? 0 : 1);
}

main();
JAVASCRIPT
node captions.cjs

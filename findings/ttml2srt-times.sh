#!/usr/bin/env bash
# ttml2srt 1.2.4 (npm): 1.04 s becomes 1.400, and captions whose text is on several lines are left out.
#
# Expected: ttml2srt(text) writes each <p> of a TTML file into an .srt file, with its times to the millisecond.
# Happens: milliseconds below 100 get their noughts at the wrong end: 40 is 400, and 5 is 500.  That is so for times in
#   seconds, in ticks and with frames.  Of the times in seconds with three digits 9.9 % are wrong.  With frames, at 25
#   a second, 8 % are wrong.  The error is up to 0.891 s, always too late, so a short caption may end before it
#   begins.  A clock time with a fraction, 00:00:01.04, is right.  A <p> with a line break within it is left out.
#   Nothing is raised, and what is logged is the frame rate.
# So: before that, write times as 00:00:01.040, and each <p> on one line.
#
#   bash findings/ttml2srt-times.sh    # needs node and npm; exits 1 if this has changed
#
# Output seen (Node 20.20.2, Linux x86-64):
#   ttml2srt 1.2.4
#   1.04s to 1.3s: 01,400 --> 01,300
#   1005t to 1300t: 01,500 --> 01,300
#   26f to 40f: 01,400 --> 01,600
#   00:00:01:01 to 00:00:01:15: 01,400 --> 01,600
#   00:00:01.04 to 00:00:01.3: 01,040 --> 01,300
#   each millisecond: 9.9 %, 0 to 0.891 s late
#   each frame: 8 %, 0 to 0.72 s late
#   one line, several, one: yes, so
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" ttml2srt@1.2.4 >/dev/null
cat > convert.cjs <<'JAVASCRIPT'
// The times and texts of TTML's captions, as they are in the .srt file.
const { ttml2srt } = require('ttml2srt');
const { version } = require('ttml2srt/package.json');

console.info = () => {}; // the frame rate

function captions(...paragraphs) {
  const head = '<tt xmlns="http://www.w3.org/ns/ttml" xmlns:ttp="http://www.w3.org/ns/ttml#parameter"';
  const rates = 'ttp:frameRate="25" ttp:tickRate="1000"';
  const body = paragraphs.map(([begin, end, text]) => `<p begin="${begin}" end="${end}">${text}</p>`).join('\n');
  const blocks = ttml2srt(`${head} ${rates}><body><div>\n${body}\n</div></body></tt>`).trim().split('\r\n\r\n');
  return blocks.map((block) => block.split('\r\n').slice(1));
}

const times = (begin, end) => captions([begin, end, 'yes'])[0][0].replaceAll('00:00:', '');

// The share of times that are wrong, in percent, and the largest error in seconds.
function errors(count, write) {
  const found = captions(...Array.from({ length: count }, (_, i) => [write(i), '9s', `${i}`]));
  const late = found.map(([time], i) => Number(time.slice(6, 12).replace(',', '.')) - 1 - i / count);
  const wrong = late.filter((seconds) => Math.abs(seconds) > 0.0011).length;
  const [least, most] = [Math.min(...late), Math.max(...late)].map((seconds) => Math.round(seconds * 1000) / 1000 + 0);
  return `${(wrong * 100) / count} %, ${least} to ${most} s late`;
}

let asStated = true;
console.log(`ttml2srt ${version}`);
for (const [what, found, stated] of [
  ['1.04s to 1.3s', times('1.04s', '1.3s'), '01,400 --> 01,300'],
  ['1005t to 1300t', times('1005t', '1300t'), '01,500 --> 01,300'],
  ['26f to 40f', times('26f', '40f'), '01,400 --> 01,600'],
  ['00:00:01:01 to 00:00:01:15', times('00:00:01:01', '00:00:01:15'), '01,400 --> 01,600'],
  ['00:00:01.04 to 00:00:01.3', times('00:00:01.04', '00:00:01.3'), '01,040 --> 01,300'],
  ['each millisecond', errors(1000, (i) => `${1000 + i}`.replace(/^1/, '1.') + 's'), '9.9 %, 0 to 0.891 s late'],
  ['each frame', errors(25, (i) => `00:00:01:${`${i}`.padStart(2, '0')}`), '8 %, 0 to 0.72 s late'],
  [
    'one line, several, one',
    captions(['1s', '2s', 'yes'], ['2s', '3s', '\n  I did\n'], ['3s', '4s', 'so'])
      .map(([, text]) => text)
      .join(', '),
    'yes, so',
  ],
]) {
  console.log(`${what}: ${found}`);
  asStated &= found === stated;
}
console.log(asStated ? 'as stated' : 'CHANGED: not as the head of this script states');
process.exit(asStated ? 0 : 1);
JAVASCRIPT
node convert.cjs

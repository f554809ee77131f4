#!/usr/bin/env bash
# @ricky0123/vad-web 0.0.31 (npm): a segment's audio begins 768 ms before its start, so times of words are late by that.
#
# Expected: NonRealTimeVAD.run(samples, rate) gives segments of speech with audio, start and end: the audio is what the
#   recording has from start to end.  A word that a recognizer hears in it at 0.5 s was said at start + 0.5 s.
# Happens: the audio also has what was before it, preSpeechPadMs in whole frames of 96 ms: 768 ms of the default of 800.
#   start is that of the frame in which speech was found, so the audio is longer than end - start, and words placed from
#   start on are 768 ms late.  Where less comes before the speech in the recording it is less, so it is not always the
#   same.  end is the end of the audio.  Nothing is logged.
# So: take end - audio.length / 16 as the time, in ms, at which the audio begins.
#
#   bash findings/vad-web-start.sh    # needs node and npm; exits 1 if this has changed
#
# Output seen (Node 20.20.2, Linux x86-64):
#   vad-web 0.0.31
#   default: start 96, end 3264, audio from 0 to 3264
#   default: start 4032, end 7200, audio from 3264 to 7200
#   default: start 9024, end 12192, audio from 8256 to 12192
#   preSpeechPadMs 300: start 96, end 3264, audio from 0 to 3264
#   preSpeechPadMs 300: start 4032, end 7200, audio from 3744 to 7200
#   preSpeechPadMs 300: start 9024, end 12192, audio from 8736 to 12192
#   preSpeechPadMs 0: start 96, end 3264, audio from 96 to 3264
#   preSpeechPadMs 0: start 4032, end 7200, audio from 4032 to 7200
#   preSpeechPadMs 0: start 9024, end 12192, audio from 9024 to 12192
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" \
  @ricky0123/vad-web@0.0.31 onnxruntime-web@1.30.0 text2wav@0.0.14 >/dev/null
cat > segments.cjs <<'JAVASCRIPT'
// A spoken sentence at some times of a recording, and where its segments' audio begins.
const fs = require('fs');
const path = require('path');
const { NonRealTimeVAD } = require('@ricky0123/vad-web');
const { version } = require('@ricky0123/vad-web/package.json');
const speak = require('text2wav');

const RATE = 16000;
const models = path.dirname(require.resolve('@ricky0123/vad-web'));

// The samples of a wav file of 16 bits, at 16,000 Hz.
function read(bytes) {
  const rate = bytes.readUInt32LE(24);
  const at = (i) => bytes.readInt16LE(44 + 2 * i) / 32768;
  return Float32Array.from({ length: Math.floor(((bytes.length - 46) / 2 / rate) * RATE) }, (_, i) => {
    const place = (i * rate) / RATE;
    const before = Math.floor(place);
    return at(before) + (at(before + 1) - at(before)) * (place - before);
  });
}

// The ms at which the recording holds exactly these samples.
function find(audio, recording) {
  for (let place = 0; place + audio.length <= recording.length; place++) {
    if (audio.every((value, i) => value === recording[place + i])) return place / 16;
  }
  return NaN;
}

async function main() {
  console.log = ((log) => (...words) => /debug/.test(words[0]) || log(...words))(console.log);
  console.warn = console.error = () => {}; // how text2wav loads its voice
  const sentence = read(Buffer.from(await speak('this is a test of the voice detector')));
  const recording = new Float32Array(RATE * 14);
  let random = 1;
  for (let i = 0; i < recording.length; i++) {
    random = (random * 16807) % 2147483647;
    recording[i] = 0.001 * (random / 2147483647 - 0.5);
  }
  for (const second of [0.1, 4, 9]) sentence.forEach((value, i) => (recording[second * RATE + i] += value));
  console.log(`vad-web ${version}`);
  const modelFetcher = async () => new Uint8Array(fs.readFileSync(path.join(models, 'silero_vad_legacy.onnx'))).buffer;
  let asStated = true;
  for (const [options, statedEarly] of [
    [{}, [96, 768, 768]],
    [{ preSpeechPadMs: 300 }, [96, 288, 288]],
    [{ preSpeechPadMs: 0 }, [0, 0, 0]],
  ]) {
    const vad = await NonRealTimeVAD.new({ ...options, modelFetcher });
    const early = [];
    for await (const { audio, start, end } of vad.run(recording, RATE)) {
      const [begins, lasts] = [find(audio, recording), audio.length / 16];
      const what = options.preSpeechPadMs === undefined ? 'default' : `preSpeechPadMs ${options.preSpeechPadMs}`;
      console.log(`${what}: start ${start}, end ${end}, audio from ${begins} to ${begins + lasts}`);
      early.push(start - begins);
      asStated &= begins + lasts === end;
    }
    asStated &= early.join() === statedEarly.join();
  }
  console.log(asStated ? 'as stated' : 'CHANGED: not as the head of this script states');
  process.exit(asStated ? 0 : 1);
}

main();
JAVASCRIPT
node segments.cjs

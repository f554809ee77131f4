#!/usr/bin/env bash
# node-audio-mixer 1.3.7 (npm): an input in stereo at another rate has its channels mixed, or the right one is lost.
#
# Expected: an input of the mixer gets the mixer's sampling rate and channels.  Each channel is resampled by itself, and
#   mono is the mean of both, so a call with a speaker on each channel stays apart, or is all there in mono.
# Happens: the interleaved samples are resampled as though they were of one channel, by taking the nearest one before.
#   From 32,000 to 16,000 Hz both channels are the left one.  From 8000 or 44,100 to 16,000 Hz each channel has both
#   speakers, at half their level, so a recognizer of one channel writes down the other one's words, too.  Mono is the
#   left channel alone, at any rate: the right speaker is gone.  Nothing is filtered: at 16,000 Hz a tone of 10,000 Hz
#   is one of 6000 Hz, as loud as before.  The mix is divided by the number of inputs that have samples just then: once
#   one ends, the other gets louder by 6 dB.  Nothing is raised or logged.
# So: resample and mix channels before that, and give all inputs the same length.
#
#   bash findings/node-audio-mixer.sh    # needs node and npm; exits 1 if this has changed
#
# Output seen (Node 20.20.2, Linux x86-64):
#   node-audio-mixer 1.3.7
#   16000 to 16000 Hz, 2 channels to 2, left and right speaker in each: 100, 0, 0, 100
#   32000 to 16000 Hz, 2 channels to 2, left and right speaker in each: 100, 0, 100, 0
#   8000 to 16000 Hz, 2 channels to 2, left and right speaker in each: 50, 50, 50, 50
#   44100 to 16000 Hz, 2 channels to 2, left and right speaker in each: 50, 50, 50, 50
#   16000 to 16000 Hz, 2 channels to 1, left and right speaker in each: 100, 0
#   48000 to 16000 Hz, 10000 Hz as 6000 Hz: 100
#   one of 2 s, with another in the first: 50, 100
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" node-audio-mixer@1.3.7 >/dev/null
cat > mix.cjs <<'JAVASCRIPT'
// A tone for each speaker, and how loud each is in what the mixer gives, in percent of what it was.
const { AudioMixer } = require('node-audio-mixer');
const { version } = require('node-audio-mixer/package.json');

const LEVEL = 10000;

// Two seconds, or so many as are asked for, with a tone in each channel.
function recording(rate, tones, seconds = 2) {
  const frames = Array.from({ length: rate * seconds }, (_, i) =>
    tones.map((hertz) => Math.round(LEVEL * Math.sin((2 * Math.PI * hertz * i) / rate))),
  );
  return Buffer.from(new Int16Array(frames.flat()).buffer);
}

async function mixed(inputs, sampleRate, channels) {
  const form = { bitDepth: 16, endianness: 'LE' };
  const mixer = new AudioMixer({ ...form, sampleRate, channels, autoClose: true });
  const results = [];
  mixer.on('data', (result) => results.push(result));
  const ended = new Promise((done) => mixer.on('end', done));
  for (const [rate, tones, seconds] of inputs) {
    const input = mixer.createAudioInput({ ...form, sampleRate: rate, channels: tones.length });
    input.end(recording(rate, tones, seconds));
  }
  await ended;
  const all = Buffer.concat(results);
  return new Int16Array(all.buffer, all.byteOffset, all.length / 2);
}

// The level of a tone in one of the channels from one second to another.
function level(samples, rate, channels, channel, hertz, from = 0, to = 2) {
  let [real, imaginary] = [0, 0];
  for (let i = from * rate; i < to * rate; i++) {
    const angle = (2 * Math.PI * hertz * i) / rate;
    real += samples[i * channels + channel] * Math.cos(angle);
    imaginary += samples[i * channels + channel] * Math.sin(angle);
  }
  return Math.round((200 * Math.hypot(real, imaginary)) / ((to - from) * rate * LEVEL));
}

async function main() {
  console.log(`node-audio-mixer ${version}`);
  let asStated = true;
  const show = (what, found, stated) => {
    console.log(`${what}: ${found.join(', ')}`);
    asStated &= found.every((value, i) => Math.abs(value - stated[i]) <= 1);
  };
  for (const [rate, channels, ...stated] of [
    [16000, 2, 100, 0, 0, 100],
    [32000, 2, 100, 0, 100, 0],
    [8000, 2, 50, 50, 50, 50],
    [44100, 2, 50, 50, 50, 50],
    [16000, 1, 100, 0],
  ]) {
    const samples = await mixed([[rate, [300, 1000]]], 16000, channels);
    const places = channels === 2 ? [0, 1] : [0];
    const found = places.flatMap((i) => [300, 1000].map((hertz) => level(samples, 16000, channels, i, hertz)));
    show(`${rate} to 16000 Hz, 2 channels to ${channels}, left and right speaker in each`, found, stated);
  }
  const high = await mixed([[48000, [10000]]], 16000, 1);
  show('48000 to 16000 Hz, 10000 Hz as 6000 Hz', [level(high, 16000, 1, 0, 6000)], [100]);
  const both = await mixed([[16000, [300], 2], [16000, [1000], 1]], 16000, 1);
  const found = [level(both, 16000, 1, 0, 300, 0, 1), level(both, 16000, 1, 0, 300, 1, 2)];
  show('one of 2 s, with another in the first', found, [50, 100]);
  console.log(asStated ? 'as stated' : 'CHANGED: not as the head of this script states');
  process.exit(asStated ? 0 : 1);
}

main();
JAVASCRIPT
node mix.cjs

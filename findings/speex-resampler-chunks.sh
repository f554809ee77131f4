#!/usr/bin/env bash
# speex-resampler 3.0.1 (npm): between chunks of most sizes samples are lost: up to half a minute of an hour of speech.
#
# Expected: processChunk resamples a stream of 16-bit samples chunk by chunk.  Its readme says that it keeps data from
#   one call for the next, so all chunks together give what one chunk of all gives, a sample more or less.
# Happens: room for a chunk's result is made for its length in bytes times the ratio of the rates, and half of that is
#   rounded down to samples.  Where one more sample is due, it does not fit, and the input for it, which the Speex code
#   says that it left, is not given again.  The 128 samples of an AudioWorklet from 44,100 to 16,000 Hz lose 0.95 %:
#   34 s of an hour.  1024 samples from 48,000 to 16,000 Hz lose 0.1 %, as do 512 from 24,000: 3.5 s of an hour.  All
#   later words are early by so much.  So it is with SpeexResamplerTransform and in stereo.  A chunk for which a whole
#   number of samples is due loses nothing.  Nothing is raised or logged.
# So: collect the samples into chunks of 10 ms, or of a multiple of it that is whole at both rates, before that.
#
#   bash findings/speex-resampler-chunks.sh    # needs node and npm; exits 1 if this has changed
#
# Output seen (Node 20.20.2, Linux x86-64):
#   speex-resampler 3.0.1
#   44100 to 16000 Hz, chunks of 128, 1 channel: 9093 of 960000 lost, click 521 ms early
#   44100 to 16000 Hz, chunks of 441, 1 channel: 0 of 960000 lost, click 0 ms early
#   48000 to 16000 Hz, chunks of 1024, 1 channel: 937 of 960000 lost, click 54 ms early
#   48000 to 16000 Hz, chunks of 1024, as a Transform: 937 of 960000 lost, click 54 ms early
#   48000 to 16000 Hz, chunks of 1024, 2 channels: 937 of 960000 lost, click 54 ms early
#   48000 to 16000 Hz, chunks of 480, 1 channel: 0 of 960000 lost, click 0 ms early
#   24000 to 16000 Hz, chunks of 512, 1 channel: 937 of 960000 lost, click 54 ms early
#   24000 to 16000 Hz, chunks of 240, 1 channel: 0 of 960000 lost, click 0 ms early
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --prefix "$folder" speex-resampler@3.0.1 >/dev/null
cat > stream.cjs <<'JAVASCRIPT'
// A minute of silence with a click at 55 s, in chunks of some sizes.
const { default: SpeexResampler, SpeexResamplerTransform } = require('speex-resampler');
const { version } = require('speex-resampler/package.json');

const SECONDS = 60;
const CLICK = 55;

function recording(rate, channels) {
  const samples = new Int16Array(rate * SECONDS * channels);
  samples.fill(20000, rate * CLICK * channels, rate * (CLICK + 0.01) * channels);
  return Buffer.from(samples.buffer);
}

async function streamed(bytes, size, from, to, channels, transform) {
  const stream = new SpeexResamplerTransform(channels, from, to);
  const resampler = new SpeexResampler(channels, from, to);
  const results = [];
  stream.on('data', (result) => results.push(result));
  for (let place = 0; place < bytes.length; place += size) {
    const chunk = bytes.subarray(place, place + size);
    if (transform) await new Promise((done) => stream.write(chunk, done));
    else results.push(resampler.processChunk(chunk));
  }
  if (transform) await new Promise((done) => stream.end(done));
  const all = Buffer.concat(results);
  return new Int16Array(all.buffer, all.byteOffset, all.length / 2).filter((_, i) => i % channels === 0);
}

async function main() {
  await SpeexResampler.initPromise;
  console.log(`speex-resampler ${version}`);
  let asStated = true;
  for (const [from, to, frames, channels, transform, statedLost, statedEarly] of [
    [44100, 16000, 128, 1, false, 9093, 521],
    [44100, 16000, 441, 1, false, 0, 0],
    [48000, 16000, 1024, 1, false, 937, 54],
    [48000, 16000, 1024, 1, true, 937, 54],
    [48000, 16000, 1024, 2, false, 937, 54],
    [48000, 16000, 480, 1, false, 0, 0],
    [24000, 16000, 512, 1, false, 937, 54],
    [24000, 16000, 240, 1, false, 0, 0],
  ]) {
    const bytes = recording(from, channels);
    const right = await streamed(bytes, bytes.length, from, to, channels, false);
    const found = await streamed(bytes, frames * channels * 2, from, to, channels, transform);
    const lost = right.length - found.length;
    const at = (samples) => samples.findIndex((value) => value > 10000) / to;
    const early = Math.round((at(right) - at(found)) * 1000);
    const how = transform ? 'as a Transform' : `${channels} channel${channels > 1 ? 's' : ''}`;
    const lostOf = `${lost} of ${right.length} lost`;
    console.log(`${from} to ${to} Hz, chunks of ${frames}, ${how}: ${lostOf}, click ${early} ms early`);
    asStated &= Math.abs(lost - statedLost) < 5 && Math.abs(early - statedEarly) < 5;
  }
  console.log(asStated ? 'as stated' : 'CHANGED: not as the head of this script states');
  process.exit(asStated ? 0 : 1);
}

main();
JAVASCRIPT
node stream.cjs

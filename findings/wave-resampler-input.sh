#!/usr/bin/env bash
# wave-resampler 1.0.0 (npm): to a lower rate it filters the caller's samples in place, and in an Int16Array they wrap.
#
# Expected: resample(samples, 48000, 16000) takes "the original samples", an array or a typed array, and gives new ones.
#   The original stays, and numbers of the same values in an Int16Array and a Float64Array give the same.
# Happens: the low-pass filter writes into the original: after the call a recording at 48 kHz has nothing above 8 kHz,
#   whoever else uses it.  An Int16Array takes what the filter gives as 16 bits, and the filter rings over full scale at
#   a loud peak: such a sample comes back with the other sign.  Speech that a microphone clipped by 3 dB has 1.2 dB of
#   signal to noise as an Int16Array, where a Float64Array is right; at 0.7 of full scale both agree.  To a higher rate
#   the original stays.
#   Nothing is raised or logged.
# So: give it Float64Array.from(samples), which is a copy, and limit the result before it becomes 16 bits.
#
#   bash findings/wave-resampler-input.sh    # needs node and npm; exits 1 if this has changed
#
# Output seen (Node 20.20.2, Linux x86-64):
#   wave-resampler 1.0.0
#   a tone of 10 kHz at 10000 in the original, after a call from 48 to 96 kHz: 10000
#   a tone of 10 kHz at 10000 in the original, after a call from 48 to 16 kHz: 0
#   0.7 of full scale: Int16Array has 79.3 dB of Float64Array, 0 of 16000 samples are wrong
#   full scale: Int16Array has 12.5 dB of Float64Array, 138 of 16000 samples are wrong
#   3 dB over it: Int16Array has 1.2 dB of Float64Array, 6527 of 16000 samples are wrong
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --prefix "$folder" wave-resampler@1.0.0 >/dev/null
cat > speech.cjs <<'JAVASCRIPT'
// A buzz like a voice's, with and without a microphone's clipping, and a tone of 10 kHz.
const { resample } = require('wave-resampler');
const { version } = require('wave-resampler/package.json');

const RATE = 48000;

// The harmonics of 150 Hz, a second of them; what is over full scale is cut off.
function voice(peak) {
  const samples = new Float64Array(RATE);
  for (let harmonic = 1; harmonic * 150 < 20000; harmonic++) {
    for (let i = 0; i < RATE; i++) {
      samples[i] += Math.sin((2 * Math.PI * 150 * harmonic * i) / RATE + harmonic ** 2) / harmonic;
    }
  }
  const highest = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return samples.map((value) => Math.max(-32768, Math.min(32767, Math.round((value / highest) * peak * 32767))));
}

function level(samples, frequency) {
  let [real, imaginary] = [0, 0];
  for (let i = RATE / 4; i < (RATE * 3) / 4; i++) {
    real += samples[i] * Math.cos((2 * Math.PI * frequency * i) / RATE);
    imaginary += samples[i] * Math.sin((2 * Math.PI * frequency * i) / RATE);
  }
  return (4 * Math.hypot(real, imaginary)) / RATE;
}

console.log(`wave-resampler ${version}`);
let asStated = true;
for (const [to, stated] of [[96000, 10000], [16000, 0]]) {
  const original = new Float64Array(RATE).map((_, i) => 10000 * Math.sin((2 * Math.PI * 10000 * i) / RATE));
  resample(original, RATE, to);
  const left = Math.round(level(original, 10000));
  console.log(`a tone of 10 kHz at 10000 in the original, after a call from 48 to ${to / 1000} kHz: ${left}`);
  asStated &= Math.abs(left - stated) < 50;
}
for (const [what, peak, statedDb, statedWrong] of [
  ['0.7 of full scale', 0.7, 79.3, 0],
  ['full scale', 1, 12.5, 138],
  ['3 dB over it', 1.41, 1.2, 6527],
]) {
  const samples = voice(peak);
  const right = resample(Float64Array.from(samples), RATE, 16000);
  const found = resample(Int16Array.from(samples), RATE, 16000);
  let [signal, noise, wrong] = [0, 0, 0];
  right.forEach((value, i) => {
    signal += value ** 2;
    noise += (value - found[i]) ** 2;
    wrong += Math.abs(value - found[i]) > 3276.8; // a tenth of full scale
  });
  const db = 10 * Math.log10(signal / noise);
  console.log(`${what}: Int16Array has ${db.toFixed(1)} dB of Float64Array, ${wrong} of 16000 samples are wrong`);
  asStated &= Math.abs(db - statedDb) < 0.5 && Math.abs(wrong - statedWrong) < 20;
}
console.log(asStated ? 'as stated' : 'CHANGED: not as the head of this script states');
process.exit(asStated ? 0 : 1);
JAVASCRIPT
node speech.cjs

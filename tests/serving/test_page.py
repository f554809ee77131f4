"""The live page in a real browser without a screen, whose microphone is a wav file."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kdstream.endpoints import EndpointConfig
from kdstream.serving.runtime import Runtime, SegmentedStream
from support.serving import noise, running_script

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "no headless browser: apt-get install chromium chromium-driver (and selenium stands in requirements.txt)"
MICROPHONE_RATE = 16000
RULES = EndpointConfig(rule3_min_utterance_length=3.0)  # so that segments come soon
MICROPHONE_SECONDS = float(os.environ.get("KDSTREAM_MICROPHONE_SECONDS", 20))  # 180 for longer
PATIENCE = 90 + MICROPHONE_SECONDS  # seconds until a test gives up on the page
# Keeps what the page sends: what the browser's microphone makes of a file, no file says.
RECORD = """
window.sent = [];
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) { sent.push(data.slice()); send.call(this, data); };
"""
RECORDED = """
const done = arguments[0];
const blob = new Blob(sent.filter((data) => typeof data !== "string"));
const reader = new FileReader();
reader.onload = () => done([sent.filter((data) => typeof data === "string"), reader.result.split(",")[1] || ""]);
reader.readAsDataURL(blob);
"""
DROP = """
const transfer = new DataTransfer();
for (const [name, data] of arguments[0]) {
  transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
}
document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
"""
# A line that notes the samples it is given.
LINE = """
const heard = [];
class Line {
  static OPEN = 1;
  readyState = 1;
  bufferedAmount = 0;
  send(samples) { heard.push(...samples); }
}
window.WebSocket = Line;
"""
# A microphone of one sample a second, of which four are kept, over a line that is cut twice.
CUT_TWICE = (
    LINE
    + """
const utterance = new Utterance(new Recording("Microphone"), 1, 4);
const connect = () => utterance.take({type: "session", session: "one", samples: heard.length});
const speak = (from, to) => { for (let n = from; n < to; n++) utterance.send(Float32Array.of(n)); };
connect();
speak(0, 2);
utterance.ready = false;
speak(2, 10);
connect();
utterance.ready = false;
speak(10, 11);
connect();
return heard;
"""
)
# Samples that are the seconds at which they were said.  When two of three words are finished, the server knows the
# session no more, twice; then it hears the third word.
FORGOTTEN = (
    LINE
    + """
const recording = new Recording("talk.wav"), utterance = new Utterance(recording, 1, arguments[0] || Infinity);
const finish = (id, start, end, text) => utterance.take({type: "segment", id, start, end, text});
utterance.take({type: "session", session: "one", samples: 0, ended: false});
for (let n = 0; n < 100; n++) utterance.send(Float32Array.of(n));
finish(0, 1, 30, "ONE");
finish(1, 50, 70, "TWO");
for (const session of ["two", "three"]) {
  utterance.ready = false;
  heard.length = 0;
  utterance.take({type: "session", session, samples: 0, ended: false});
}
finish(0, 85 - heard[0], 95 - heard[0], "THREE");
return [heard, recording.srt];
"""
)
# For a microphone that may not be used, also after the page was loaded again with a recording that is open.
DENIED = """
navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error("Permission denied"));
window.kept = () => JSON.parse(sessionStorage.getItem("recordings") || "[]");
"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        None in (BROWSER, DRIVER, importlib.util.find_spec("selenium")),
        reason=MISSING + os.environ.get("KDSTREAM_NO_BROWSER", ""),
    ),
]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """What the microphone hears: 8 s of noise, and from then on a pause of 2 s before each 8 s."""
    path = tmp_path_factory.mktemp("spoken") / "spoken.wav"
    samples = 0.8 * noise(MICROPHONE_SECONDS, seed=3)
    seconds = np.arange(len(samples)) / MICROPHONE_RATE
    samples[(seconds % 10 >= 8) & (seconds < MICROPHONE_SECONDS - 2)] = 0.0
    soundfile.write(path, samples, MICROPHONE_RATE)
    return path


@pytest.fixture(scope="module")
def page(served, spoken) -> Iterator[Any]:
    """A browser on the page, driven by selenium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={spoken}%noloop",
    ):
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # it does not work for root
    flags = ("--rule3-min-utterance-length", RULES.rule3_min_utterance_length)
    with running_script(served.files.encoder, *flags) as url:
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        try:
            browser.set_script_timeout(PATIENCE)
            browser.url = url
            yield browser
        finally:
            browser.quit()


def reload(page: Any) -> None:
    """The page as it is at first, without what the tab keeps."""
    page.get(page.url)
    page.execute_script("sessionStorage.clear()")
    page.get(page.url)
    page.execute_script(RECORD)


def wait(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the page did not come so far"
        time.sleep(0.05)
    return condition()


def text(page: Any, selector: str) -> str:
    """Of the first such element, "" where there is none."""
    return page.execute_script("return (document.querySelector(arguments[0]) || {}).textContent || ''", selector)


def heard(page: Any) -> list[str]:
    """The texts of the recordings that are finished."""
    return page.execute_script(
        "return recordings.filter((each) => !each.open).map((each) => each.text.replaceAll('\\n', ' '))"
    )


def growing(page: Any) -> str:
    """All that is there of the recording that is being made."""
    return page.execute_script(
        "return [...document.querySelectorAll('.text span')].map((s) => s.textContent).join(' ')"
    )


def recorded(page: Any) -> tuple[int, np.ndarray]:
    """The rate and the samples of the one utterance that the page has sent."""
    (start, end), data = page.execute_async_script(RECORDED)
    assert json.loads(end) == {"type": "end"}
    return json.loads(start)["sample_rate"], np.frombuffer(base64.b64decode(data), "<f4")


def no_errors(page: Any) -> bool:
    """Nor any breach of the content security policy."""
    return not [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def likeness(samples: np.ndarray, of: np.ndarray) -> float:
    """The largest correlation of a stretch in the middle of `samples` with any of `of`, both at one rate."""
    middle = samples[len(samples) // 2 :][:4000]
    products = np.correlate(of, middle, "valid")
    energies = np.convolve(of**2, np.ones(len(middle)), "valid")
    return float(np.max(products / np.sqrt(energies * np.sum(middle**2) + 1e-9)))


def test_words_of_the_microphone_appear_while_it_runs_and_the_keyboard_is_enough(page, served, spoken):
    from selenium.webdriver.common.keys import Keys

    reload(page)
    page.switch_to.active_element.send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("id") == "microphone"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    first = wait(lambda: growing(page))
    wait(lambda: len(growing(page)) > len(first) + 10)
    assert text(page, "#status") == "Listening." and heard(page) == []
    assert page.switch_to.active_element.get_attribute("id") == "microphone"
    page.switch_to.active_element.send_keys(Keys.SPACE)
    (final,) = wait(lambda: heard(page))
    assert text(page, ".growing") == "" and text(page, "#microphone") == "Start microphone"

    rate, samples = recorded(page)
    stream = SegmentedStream(Runtime(served.files, rules=RULES))
    for part in (samples, served.files.silence(rate)):
        stream.accept(part, rate)
    stream.finish()
    stream.decode()
    stream.end()
    assert final == " ".join(segment.text for segment in stream.segments) and len(final) > len(first)

    original, _ = soundfile.read(spoken, dtype="float32")
    places = np.arange(0, len(samples), rate / MICROPHONE_RATE)
    at_16k = np.interp(places, np.arange(len(samples)), samples)
    # noise up to 8 kHz, interpolated without a filter: not all of it comes through
    assert likeness(at_16k, original) > 0.5 > likeness(noise(20.0, seed=4)[: len(at_16k)], original)
    assert no_errors(page)


def test_a_file_gives_the_words_of_chunk_wise_decoding(page, served, tmp_path):
    samples = noise(4.0, seed=6)
    soundfile.write(tmp_path / "said.wav", samples, 16000, subtype="FLOAT")
    reload(page)
    page.find_element("id", "files").send_keys(str(tmp_path / "said.wav"))
    (final,) = wait(lambda: heard(page))
    assert final == served.offline({"said": samples}, RULES)["said"]
    assert text(page, "article h2") == "said.wav"
    rate, sent = recorded(page)
    assert rate == 16000 and np.array_equal(sent, samples)
    assert no_errors(page)


def test_channels_in_opposite_phase_do_not_cancel(page, served, tmp_path):
    samples = noise(2.0, seed=9)
    reload(page)
    soundfile.write(tmp_path / "opposite.wav", np.stack([samples, -samples], axis=1), 16000, subtype="FLOAT")
    page.find_element("id", "files").send_keys(str(tmp_path / "opposite.wav"))
    wait(lambda: heard(page))
    np.testing.assert_array_equal(recorded(page)[1], samples)
    reload(page)
    soundfile.write(tmp_path / "one-sided.wav", np.stack([samples, 0 * samples], axis=1), 16000, subtype="FLOAT")
    page.find_element("id", "files").send_keys(str(tmp_path / "one-sided.wav"))
    wait(lambda: heard(page))
    np.testing.assert_array_equal(recorded(page)[1], samples / 2)
    assert no_errors(page)


def test_dropped_files_are_heard_in_turn_and_the_broken_named(page, served, tmp_path):
    audio = {name: noise(seconds, seed=8) for name, seconds in (("a.flac", 1.5), ("c.wav", 2.0))}
    for name, samples in audio.items():
        soundfile.write(tmp_path / name, samples, 16000)
    (tmp_path / "b.mp3").write_bytes(b"no sound" * 100)
    names = ("a.flac", "b.mp3", "c.wav")
    reload(page)
    page.execute_script(DROP, [[name, base64.b64encode((tmp_path / name).read_bytes()).decode()] for name in names])
    wait(lambda: "no sound that this browser can read" in text(page, "#status"))
    assert text(page, "#status").startswith("b.mp3: ") and len(heard(page)) == 2
    exact = {name: soundfile.read(tmp_path / name, dtype="float32")[0] for name in audio}
    assert heard(page) == list(served.offline(exact, RULES).values())
    assert no_errors(page)


SUBTITLE = re.compile(r"(\d+)\n(\d\d):(\d\d):(\d\d),(\d{3}) --> (\d\d):(\d\d):(\d\d),(\d{3})\n(.+)\n")


def subtitles(text: str) -> list[tuple[float, float, str]]:
    """The cues of an SRT file, which holds nothing else."""
    found = SUBTITLE.findall(text)
    assert "\n".join(SUBTITLE.sub(r"\g<0>", match[0]) for match in SUBTITLE.finditer(text)) == text
    assert [int(cue[0]) for cue in found] == list(range(1, len(found) + 1))
    hours = (3600, 60, 1, 0.001)
    times = [[sum(x * int(y) for x, y in zip(hours, cue[n : n + 4], strict=True)) for n in (1, 5)] for cue in found]
    return [(start, end, cue[9]) for (start, end), cue in zip(times, found, strict=True)]


def test_a_page_that_is_loaded_again_goes_on_with_its_session_and_gives_subtitles(page, tmp_path):
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    reload(page)
    page.find_element("id", "microphone").click()
    segments = "return recordings.length && recordings[0].segments"  # there is one when the microphone is there
    before = wait(lambda: page.execute_script(segments))
    session = page.execute_script("return recordings[0].part.session")
    page.refresh()
    wait(lambda: page.execute_script("return recordings.length && recordings[0].part.session") == session)
    enough = max(len(before) + 1, (MICROPHONE_SECONDS - 20) // 4)
    wait(lambda: len(page.execute_script(segments)) > enough)
    after = page.execute_script(segments)
    assert after[: len(before) - 1] == before[:-1] and len(page.execute_script("return recordings[0].parts")) == 1
    page.find_element("id", "microphone").click()
    wait(lambda: heard(page))
    page.execute_script("arguments[0].click()", page.find_element("xpath", "//button[.='SRT']"))
    file = tmp_path / "Microphone.srt"
    wait(file.exists)
    cues = subtitles(file.read_text())
    assert [text for *_, text in cues] == [each["text"] for each in page.execute_script(segments)]
    assert all(a < b for a, b, _ in cues) and all(a[1] <= b[0] for a, b in itertools.pairwise(cues))
    assert no_errors(page)


def test_after_an_outage_that_is_longer_than_what_is_kept_nothing_is_sent_twice(page):
    reload(page)
    assert page.execute_script(CUT_TWICE) == [0, 1, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("kept, first", [(None, 70), (60, 70), (20, 80)])
def test_a_server_that_forgot_the_session_hears_what_was_not_finished_and_no_more(page, kept, first):
    reload(page)
    heard, srt = page.execute_script(FORGOTTEN, kept)
    assert heard == list(range(first, 100))
    assert subtitles(srt) == [(1.0, 30.0, "ONE"), (50.0, 70.0, "TWO"), (85.0, 95.0, "THREE")]


def test_a_microphone_that_is_denied_leaves_no_recording_open(page):
    reload(page)
    page.execute_script(DENIED)
    page.find_element("id", "microphone").click()
    wait(lambda: text(page, "#status") == "Microphone: Permission denied.")
    assert page.execute_script("return kept()") == []
    page.execute_script("record('Microphone'); begin()")
    wait(lambda: page.execute_script("return kept().length > 1 && kept().every((each) => !each.open)"))
    assert text(page, "#status") == "Microphone: Permission denied."

"""Single letters and byte pieces as tokens: the same text, words, times and hotwords in torch and in sherpa-onnx."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdstream
from kdstream.corpus.bpe import texts_for_tokens, train_bpe_model
from kdstream.serving.runtime import Runtime, SegmentedStream, find_model
from support.decoding import make_experiment
from support.serving import export_with_tokens, noise

pytestmark = pytest.mark.slow

ENGLISH = ["THE CAT SAT ON THE MAT", "A DOG RAN", "HELLO WORLD AGAIN", "NAÏVE CAFÉ"] * 5
CHINESE = ["今天 天气 很好", "我 有 手机", "他说 英语", "你好 世界", "我 有 IPHONE PLUS"] * 5
KINDS = {
    "letters": (ENGLISH, "char", None),
    "bytes": (ENGLISH, "byte-bpe", 270),
    "Chinese letters": (CHINESE, "char", None),
    "Chinese bytes": (CHINESE, "byte-bpe", 270),
}
PHRASES = {
    "letters": ("d", "tot git"),
    "bytes": ("a", "cafÉ"),
    "Chinese letters": ("手机", "en 语", "LL NN"),
    "Chinese bytes": ("好", "手机"),
}
BEAM = {"search": "modified_beam_search", "beam_size": 4}


@pytest.fixture(scope="module", params=KINDS)
def folders(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """The kind, an exp-dir with its tokens, and what is exported of it."""
    texts, token_type, size = KINDS[request.param]
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "text").write_text("\n".join(texts_for_tokens(texts)), encoding="utf8")
    train_bpe_model(folder / "text", folder, size, token_type)
    exp_dir = make_experiment(folder, causal=True, bpe_model=folder / "bpe.model")
    (folder / "exported").mkdir()
    export_with_tokens(exp_dir, folder / "exported")
    return request.param, exp_dir, folder / "exported"


def test_both_runtimes_say_the_same_words_at_the_same_times(folders):
    kind, exp_dir, exported = folders
    trained, sherpa = kdstream.load(exp_dir, chunk=8, left_context=32, device="cpu"), kdstream.load(exported)
    for seed in range(2):
        samples = noise(4.0, seed)
        heard = trained.transcribe(samples)
        exported_heard = sherpa.transcribe(samples)
        assert (exported_heard.text, exported_heard.words) == (heard.text, heard.words) and len(heard.words) > 3
        assert ("\ufffd" in heard.text) == ("bytes" in kind)  # bytes that are no character are shown as such


def test_the_live_page_writes_the_same_text(folders):
    _, exp_dir, exported = folders
    model, samples = find_model(next(exported.glob("encoder-*32.onnx"))), noise(4.0, 1)
    stream = SegmentedStream(Runtime(model))
    stream.accept(samples, 16000)
    stream.finish()
    stream.decode()
    said = stream.text
    trained = kdstream.load(exp_dir, chunk=8, left_context=32, device="cpu").transcribe(samples)
    assert trained.text.startswith(said) and len(said) > 30  # the last chunk is not full here


def test_both_runtimes_prefer_the_same_hotwords(folders, tmp_path, caplog):
    kind, exp_dir, exported = folders
    samples, changed = noise(4.0, 1), 0
    before = kdstream.load(exported, **BEAM).transcribe(samples)
    for phrase in PHRASES[kind]:
        (tmp_path / "hotwords.txt").write_text(f"{phrase} :3\n", encoding="utf8")
        hotwords = {**BEAM, "hotwords_file": str(tmp_path / "hotwords.txt")}
        trained = kdstream.load(exp_dir, chunk=8, left_context=32, device="cpu", **hotwords).transcribe(samples)
        exported_too = kdstream.load(exported, **hotwords).transcribe(samples)
        if kind == "Chinese bytes":  # sherpa-onnx says no phrase but after a blank, and we say that
            assert "after a blank alone" in caplog.text
        else:
            assert exported_too.words == trained.words
        changed += trained.words != before.words
    assert changed

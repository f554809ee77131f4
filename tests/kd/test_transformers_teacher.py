"""Teachers of Hugging Face transformers, with random weights of five families."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdstream.errors import UserError
from kdstream.kd.teacher_cache import CachedTeacher, CacheWriter, fingerprint
from kdstream.kd.teachers import load_teacher
from kdstream.kd.transformers_teacher import TransformersTeacher, load_transformers_teacher
from support.teachers import FAMILIES, losses_while_learning, save_family, spoken, student_config

CPU = torch.device("cpu")
AHEAD = {"wav2vec2": 2, "hubert": 2, "wavlm": 2, "w2v-bert": 1, "whisper": 2}  # frames of theirs before our first
LAYERS = ["0.1", "0.2"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("transformers")
    return {family: save_family(family, folder / family) for family in FAMILIES}


def load(directory: Path) -> TransformersTeacher:
    return load_transformers_teacher(str(directory), CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_gives_its_own_layers_at_our_frames(directories, family):
    transformers = pytest.importorskip("transformers")
    teacher, batch = load(directories[family]), spoken()
    heard = teacher.listen(batch, ["0.0", "0.1"])
    assert list(teacher.shapes) == ["0.0", "0.1", "0.2"] and heard.encoder_out is None
    model = transformers.AutoModel.from_pretrained(directories[family]).eval()
    encoder = model.get_encoder() if family == "whisper" else model
    extractor = transformers.AutoFeatureExtractor.from_pretrained(directories[family])
    for n, (frames, samples) in enumerate(zip(batch.feature_lens.tolist(), batch.audio_lens.tolist(), strict=True)):
        inputs = extractor(batch.audio[n, :samples].numpy(), sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            states = encoder(**inputs, output_hidden_states=True).hidden_states
        tap = heard.layers["0.0"]
        T = (frames - 7) // 2
        assert int(tap.lens[n]) == T and tap.stride == 1
        expected = states[1][0, AHEAD[family] : AHEAD[family] + T]
        torch.testing.assert_close(tap.features[n, :T], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_keys_and_values_are_those_of_its_self_attention(directories, family):
    teacher, batch = load(directories[family]), spoken((60,))
    tapped = teacher.layers["0.1"]
    names = (
        ("q_proj", "k_proj", "v_proj") if hasattr(tapped.attention, "q_proj") else ("linear_q", "linear_k", "linear_v")
    )
    inputs = []

    def keep(_, args, kwargs):
        inputs.append((args or tuple(kwargs.values()))[0])

    tapped.attention.register_forward_pre_hook(keep, with_kwargs=True)
    tap = teacher.listen(batch, ["0.1"]).layers["0.1"]
    T = int(tap.lens[0])
    for tensor, name in zip((tap.query, tap.key, tap.value), names, strict=True):
        expected = getattr(tapped.attention, name)(inputs[0])[0, AHEAD[family] : AHEAD[family] + T]
        torch.testing.assert_close(tensor[0, :T], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_utterance_is_heard_in_a_batch_as_alone(directories, family):
    teacher, batch = load(directories[family]), spoken()
    together = teacher.listen(batch, LAYERS).layers["0.2"]
    batch.audio[1, int(batch.audio_lens[1]) :] = 9.0  # padding that nobody may hear
    alone = replace(
        batch, features=batch.features[1:], feature_lens=batch.feature_lens[1:], audio=batch.audio[1:],
        audio_lens=batch.audio_lens[1:], cut_ids=batch.cut_ids[1:],
    )  # fmt: skip
    tap = teacher.listen(alone, LAYERS).layers["0.2"]
    T = int(tap.lens[0])
    torch.testing.assert_close(together.features[1, :T], tap.features[0, :T], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_lowers_every_loss_under_it_live_and_cached_alike(tmp_path, directories, family):
    teacher, batch = load(directories[family]), spoken((60, 45), ["a", "b"])
    live = losses_while_learning(teacher, batch, 15)
    assert set(live[0]) == {"feature_loss", "relation_loss", "apc_loss"}
    assert all(live[-1][name] < 0.8 * loss for name, loss in live[0].items())
    CacheWriter(tmp_path, teacher, LAYERS, "float16", fingerprint(teacher)).add(batch)
    cached = CachedTeacher(load(directories[family]), tmp_path, fingerprint(load(directories[family])))
    silent = replace(batch, audio=None, audio_lens=None)
    first = losses_while_learning(cached, silent, 1)[0]
    assert first == pytest.approx(live[0], rel=1e-3)


def test_frames_twice_as_long_as_ours_are_cached_as_they_are_heard(tmp_path):
    longer = {"conv_stride": [5, 2, 2, 2, 2, 2, 4]}
    teacher = load(save_family("wav2vec2", tmp_path / "model", **longer))
    assert teacher.grid.frame_ms == 40 and teacher.shapes["0.0"].stride == 2
    batch = spoken((120, 95), ["a", "b"])
    CacheWriter(tmp_path / "cache", teacher, LAYERS, "float16", "of the test").add(batch)
    cached = CachedTeacher(teacher, tmp_path / "cache", "of the test")
    for name in LAYERS:
        live, stored = (one.listen(batch, LAYERS).layers[name] for one in (teacher, cached))
        assert live.lens.tolist() == stored.lens.tolist() == [28, 22]  # of 56 and 44 encoder frames
        torch.testing.assert_close(stored.features, live.features, rtol=1e-3, atol=1e-3)


def test_a_model_of_another_rate_hears_resampled_audio(tmp_path):
    directory = save_family("wav2vec2", tmp_path)
    settings = directory / "preprocessor_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "sampling_rate": 8000}))
    teacher, batch = load(directory), spoken((120,))
    assert teacher.grid.frame_ms == 40 and teacher.grid.first_ms == 25
    seen = []
    teacher.model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    teacher.listen(batch, ["0.0"])
    assert seen[0]["input_values"].shape == (1, 9600)


def test_whispers_window_is_the_longest_that_it_hears_and_the_cut_is_named(directories):
    teacher = load(directories["whisper"])
    batch = spoken((3000,), ["just"])
    assert int(teacher.listen(batch, ["0.0"]).layers["0.0"].lens[0]) == 1496
    with pytest.raises(UserError, match="cut long has 30.01 s, and this teacher hears 30 s at most; give --max-utt"):
        teacher.listen(spoken((3001,), ["long"]), ["0.0"])


def test_nothing_is_asked_of_a_network(monkeypatch, directories, tmp_path):
    def refuse(*_):
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(directories["hubert"])
    with pytest.raises(UserError, match="no config.json there; give a directory .* nothing is downloaded"):
        load(Path("facebook/hubert-base-ls960"))


def test_what_could_hold_code_is_refused(tmp_path, directories):
    ran = tmp_path / "ran"
    pickled = save_family("hubert", tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"--teacher-checkpoint .*pytorch_model.bin: pickled .* safe_serialization"):
        load(pickled)
    custom = save_family("hubert", tmp_path / "custom")
    (custom / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Model: ...\nclass Config: ...\n")
    config = json.loads((custom / "config.json").read_text())
    config.update(model_type="of_its_own", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})
    (custom / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="--teacher-checkpoint .*custom: transformers cannot load it"):
        load(custom)
    assert not ran.exists()


def test_what_is_no_whole_speech_encoder_is_a_clear_error(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    directory = save_family("wav2vec2", tmp_path / "model")
    weights = safetensors.load_file(directory / "model.safetensors")
    lacking = {name: x for name, x in weights.items() if "encoder.layers.1." not in name}
    safetensors.save_file(lacking, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"its weights lack encoder.layers.1\..*, \.\.\.; give the directory of a whole"
    ):
        load(directory)
    weights["encoder.layers.0.attention.q_proj.weight"][0, 0] = float("nan")
    safetensors.save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="layers.0.attention.q_proj.weight holds NaN"):
        load(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model.safetensors there"):
        load(directory)
    (directory / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="transformers cannot load it"):
        load(directory)
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="transformers cannot load it"):
        load(directory)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'kdstream\[teachers\]'"):
        load(directory)


def test_the_flags_load_it(tmp_path, directories):
    flags = {"teacher_type": "transformers", "teacher_checkpoint": str(directories["wavlm"])}
    config = student_config(tmp_path, **flags)
    config = replace(config, data=replace(config.data, spec_aug_time_warp_factor=0))
    teacher = load_teacher(config, CPU)
    assert isinstance(teacher, TransformersTeacher) and teacher.needs_audio

"""Teachers of torchaudio's code: wav2vec 2.0, HuBERT and WavLM."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kdstream.errors import UserError
from kdstream.kd.distiller import Distiller
from kdstream.kd.speech_encoder import FIRST_MIDDLE_MS
from kdstream.kd.teachers import load_teacher
from kdstream.kd.torchaudio_teacher import TorchaudioTeacher, load_speech_encoder
from kdstream.units import ENCODER_FRAME_MS
from support.distillation import SMALL
from support.models import tiny_test_model
from support.teachers import ENCODER, KINDS, losses_while_learning, speech_encoder, spoken, student_config

CPU = torch.device("cpu")
LARGE = {**ENCODER, "extractor_mode": "layer_norm", "encoder_layer_norm_first": True}  # of normalised samples


def test_a_large_speech_encoder_hears_normalised_samples():
    encoder = speech_encoder("wav2vec2_model", LARGE)
    batch = spoken()
    heard = TorchaudioTeacher(encoder, CPU).listen(batch, ["0.2"]).layers["0.2"]
    for n, samples in enumerate(batch.audio_lens.tolist()):
        audio = batch.audio[n : n + 1, :samples]
        audio = (audio - audio.mean()) / (audio.var(unbiased=False) + 1e-5).sqrt()
        with torch.no_grad():
            layers, _ = encoder.extract_features(audio)
        frames = int(heard.lens[n])
        torch.testing.assert_close(heard.features[n, :frames], layers[2][0, 2 : frames + 2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_speech_encoder_gives_its_own_layers_and_their_projections(tmp_path, kind):
    encoder = speech_encoder(kind)
    torch.save(encoder.state_dict(), tmp_path / "weights.pt")
    config = student_config(
        tmp_path,
        teacher_type="torchaudio",
        teacher_checkpoint=str(tmp_path / "weights.pt"),
        teacher_model=f"{kind} {json.dumps(KINDS[kind])}",
    )
    config = replace(config, data=replace(config.data, spec_aug_time_warp_factor=0))
    teacher = load_teacher(config, CPU)
    batch = spoken()
    heard = teacher.listen(batch, ["0.0", "0.2"])
    assert list(teacher.shapes) == ["0.0", "0.1", "0.2"] and heard.encoder_out is None
    for n, samples in enumerate(batch.audio_lens.tolist()):
        with torch.no_grad():
            layers, _ = encoder.extract_features(batch.audio[n : n + 1, :samples])
        for i in (0, 2):
            tap = heard.layers[f"0.{i}"]
            frames = int(tap.lens[n])
            assert frames == (int(batch.feature_lens[n]) - 7) // 2 and tap.stride == 1
            torch.testing.assert_close(tap.features[n, :frames], layers[i][0, 2 : frames + 2], rtol=0, atol=1e-5)
        with torch.no_grad():
            attention = encoder.encoder.transformer.layers[2].attention
            if kind == "wavlm_model":
                inner = attention.attention
                expected = torch.nn.functional.linear(layers[1], inner.in_proj_weight, inner.in_proj_bias)
                query, key, value = expected[0, 2 : frames + 2].chunk(3, dim=-1)
            else:
                projections = (attention.q_proj, attention.k_proj, attention.v_proj)
                query, key, value = (projection(layers[1])[0, 2 : frames + 2] for projection in projections)
        for tensor, expected in ((tap.query, query), (tap.key, key), (tap.value, value)):
            torch.testing.assert_close(tensor[n, :frames], expected, rtol=0, atol=1e-5)


def test_frames_of_a_speech_encoder_are_those_whose_middle_is_nearest_to_ours():
    features = torch.randn(1, 120, 80, generator=torch.Generator().manual_seed(0)).requires_grad_()
    audio = torch.randn(1, 19200, generator=torch.Generator().manual_seed(0)).requires_grad_()
    front_end = tiny_test_model(True).encoder_embed.conv  # the ConvNeXt after it hears as much before as behind
    ours = front_end(features.unsqueeze(1))[0, :, 20]
    theirs = audio.unsqueeze(1)
    for layer in speech_encoder("wav2vec2_model").feature_extractor.conv_layers:
        theirs = layer.conv(theirs)  # without the normalisation, which hears the whole utterance
    theirs = theirs[0].t()

    def middle(output, inputs):
        (gradient,) = torch.autograd.grad(output.abs().sum(), inputs, retain_graph=True)
        heard = gradient[0].reshape(gradient.size(1), -1).abs().sum(1).nonzero()
        return (heard.min() + heard.max()).item() / 2

    our_ms = 10 * middle(ours, features) + 5  # a feature frame lasts 10 ms, and its window reaches as far to both sides
    their_ms = [(middle(theirs[20 + ahead], audio) + 0.5) / 16 for ahead in range(5)]
    grid = TorchaudioTeacher(speech_encoder("wav2vec2_model"), CPU).grid
    assert our_ms == FIRST_MIDDLE_MS + 20 * ENCODER_FRAME_MS
    assert their_ms == [grid.first_ms + grid.frame_ms * (20 + ahead) for ahead in range(5)]
    distances = [abs(theirs - our_ms) for theirs in their_ms]
    numbers = torch.arange(60.0).unsqueeze(1)
    assert grid.fit(numbers, 21)[20] == 20 + distances.index(min(distances))


@pytest.mark.slow
def test_a_student_learns_from_a_speech_encoder():
    history = losses_while_learning(TorchaudioTeacher(speech_encoder("wav2vec2_model"), CPU), spoken((60, 45)), 15)
    assert len(history[0]) == 3
    assert all(history[-1][name] < 0.8 * loss for name, loss in history[0].items())


def test_token_losses_under_a_teacher_without_tokens_are_a_clear_error():
    teacher = TorchaudioTeacher(speech_encoder("wav2vec2_model"), CPU)
    with pytest.raises(UserError, match="--kd-token-scale: this teacher writes no tokens"):
        Distiller(replace(SMALL, kd_token_scale=1.0, kd_layers=("1.1:0.1",)), tiny_test_model(causal=True), teacher)


@pytest.mark.parametrize(
    "model, message",
    [
        ("resnet18", "no speech encoder of torchaudio.models; give e.g. hubert_base"),
        ("wav2vec2_model {bad", "Expecting property name"),
        (f"wav2vec2_model {json.dumps({**ENCODER, 'encoder_num_layers': 2})}", "Unexpected key"),
    ],
)
def test_a_speech_encoder_that_does_not_fit_its_weights_is_a_clear_error(model, message):
    weights = speech_encoder("wav2vec2_model").state_dict()
    with pytest.raises(UserError, match=f"--teacher-model .*{message}"):
        load_speech_encoder(model, weights, "weights.pt")

"""Teachers of other kinds: icefall's checkpoints, torchaudio's speech encoders, and what the flags allow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DistillConfig, ModelConfig
from kdstream.data.batch import Batch
from kdstream.errors import UserError
from kdstream.kd.distiller import Distiller
from kdstream.kd.icefall_checkpoint import model_of
from kdstream.kd.speech_encoder import FRAMES_AHEAD, SpeechEncoderTeacher, load_speech_encoder
from kdstream.kd.teachers import flags_without_effect, load_teacher, needs_clean
from kdstream.models.presets import resolve
from kdstream.models.transducer import build_model
from support.distillation import CHUNK, SMALL, write_tokens
from support.models import batch_of, random_batch, tiny_test_config, tiny_test_model
from support.teachers import ENCODER, KINDS, speech_encoder

CPU = torch.device("cpu")
# the flags with which icefall would have trained tiny_test_config
ICEFALL = {
    "num_encoder_layers": "1,2,1", "downsampling_factor": "1,2,4", "encoder_dim": "32,48,32",
    "encoder_unmasked_dim": "24,32,24", "feedforward_dim": "48,64,48", "num_heads": "4", "query_head_dim": "8",
    "value_head_dim": "6", "pos_head_dim": "4", "pos_dim": 48, "cnn_module_kernel": "31,15,15", "decoder_dim": 64,
    "joiner_dim": 64,
}  # fmt: skip
FLAGS = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in ICEFALL.items())
LARGE = {**ENCODER, "extractor_mode": "layer_norm", "encoder_layer_norm_first": True}  # of normalised samples


def student_config(tmp_path: Path, **distill) -> ExperimentConfig:
    data = write_tokens(tmp_path / "lang", ["<blk>", "<unk>", *map(str, range(28))])
    return ExperimentConfig(model=tiny_test_config(True), data=data, distill=DistillConfig(**distill))


SAVE = {
    "pretrained.pt": lambda weights, path: torch.save({"model": weights}, path),
    "state_dict.pt": torch.save,
    "weights.safetensors": save_file,
}


@pytest.mark.parametrize("causal, name", [(False, "pretrained.pt"), *((True, name) for name in SAVE)])
def test_icefalls_pretrained_model_with_its_flags_is_a_teacher(tmp_path, causal, name):
    model = tiny_test_model(causal)
    extra = {"attention_decoder.decoder.weight": torch.zeros(3)}
    path = str(tmp_path / name)
    SAVE[name]({key: value.contiguous() for key, value in {**model.state_dict(), **extra}.items()}, path)
    config = student_config(tmp_path, teacher_type="icefall", teacher_checkpoint=path, teacher_model=FLAGS)
    teacher = load_teacher(config, CPU)
    assert replace(teacher.model.config, preset="small") == model.config
    features, lens, _ = random_batch()
    torch.testing.assert_close(teacher.model.encode(features, lens), model.encode(features, lens), rtol=0, atol=0)


def test_our_teacher_is_the_mean_of_the_epochs_that_the_flags_name(tmp_path):
    config = student_config(tmp_path, teacher_epoch=2, teacher_avg=2, teacher_use_averaged_model=False)
    config = replace(config, distill=replace(config.distill, teacher_exp_dir=str(tmp_path)))
    replace(config, model=tiny_test_config(False), distill=DistillConfig()).save(tmp_path)
    epochs = [tiny_test_model(False, seed=epoch).state_dict() for epoch in (1, 2, 3)]
    for epoch, weights in enumerate(epochs, start=1):
        torch.save({"model": weights}, tmp_path / f"epoch-{epoch}.pt")
    heard = load_teacher(config, CPU).model.state_dict()
    for name in ("joiner.output_linear.weight", "encoder.encoders.0.layers.0.norm.bias"):
        torch.testing.assert_close(heard[name], (epochs[0][name] + epochs[1][name]) / 2, msg=name)


def test_what_is_wrong_with_our_teacher_is_said_in_the_flags_of_training(tmp_path):
    config = student_config(tmp_path, teacher_exp_dir=str(tmp_path / "exp--avg-3"))
    with pytest.raises(UserError, match="exp--avg-3/config.json: no such file"):
        load_teacher(config, CPU)
    config = replace(config, distill=replace(config.distill, teacher_exp_dir=str(tmp_path / "exp")))
    with pytest.raises(UserError, match="config.json: no such file; --teacher-exp-dir must name"):
        load_teacher(config, CPU)
    (tmp_path / "exp").mkdir()
    replace(config, distill=DistillConfig()).save(tmp_path / "exp")
    flags = replace(config.distill, teacher_epoch=1, teacher_avg=5)
    with pytest.raises(UserError, match="--teacher-epoch 1 --teacher-avg 5: .*; lower --teacher-avg"):
        load_teacher(replace(config, distill=flags), CPU)


@pytest.mark.parametrize("chunk_size, warned", [((8,), True), ((8, -1), False)])
def test_a_streaming_teacher_that_never_heard_everything_is_pointed_out(tmp_path, caplog, chunk_size, warned):
    config = student_config(tmp_path, teacher_exp_dir=str(tmp_path), teacher_use_averaged_model=False)
    teacher = replace(config, model=tiny_test_config(True, chunk_size=chunk_size), distill=DistillConfig())
    teacher.save(tmp_path)
    torch.save({"model": tiny_test_model(True).state_dict()}, tmp_path / "epoch-1.pt")
    load_teacher(config, CPU)
    assert ("never trained in full context" in caplog.text) == warned


def test_icefalls_tokens_are_those_beside_the_teachers_own_bpe_model(tmp_path):
    torch.save({"model": tiny_test_model(False).state_dict()}, tmp_path / "pretrained.pt")
    path = str(tmp_path / "pretrained.pt")
    flags = dict(teacher_type="icefall", teacher_checkpoint=path, teacher_model=FLAGS, kd_token_scale=0.5)
    config = student_config(tmp_path, **flags)
    load_teacher(config, CPU)
    theirs = write_tokens(tmp_path / "theirs", ["<blk>", "<unk>", *map(str, range(27, -1, -1))])
    other = replace(config, distill=replace(config.distill, teacher_bpe_model=theirs.bpe_model))
    with pytest.raises(UserError, match="another vocabulary"):
        load_teacher(other, CPU)


def test_icefalls_epoch_says_itself_what_model_it_is_of(tmp_path):
    model = tiny_test_model(False)
    checkpoint = {"model": model.state_dict(), **ICEFALL, "exp_dir": Path("zipformer/exp"), "batch_idx_train": 7}
    torch.save(checkpoint, tmp_path / "epoch-1.pt")
    config = student_config(tmp_path, teacher_type="icefall", teacher_checkpoint=str(tmp_path / "epoch-1.pt"))
    assert replace(load_teacher(config, CPU).model.config, preset="small") == model.config


def test_a_preset_is_enough_for_icefalls_own_sizes():
    resolved = resolve(ModelConfig(preset="small", causal=True, vocab_size=500))
    weights = build_model(resolved).state_dict()
    assert resolve(model_of("x", {}, weights, "--preset small")) == resolved


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "does not say what model it is of; give --teacher-model '--preset medium'"),
        ("--preset huge", "--preset huge: unknown for --encoder zipformer; use one of tiny"),
        ("--max-duration 3", "--max-duration is no flag of a model"),
        ("--encoder-dim big", "--teacher-model '--encoder-dim big': .*invalid"),
        ("--preset tiny", "--teacher-checkpoint .*pretrained.pt: the checkpoint does not fit"),
    ],
)
def test_what_does_not_describe_the_checkpoint_is_a_clear_error(tmp_path, flags, message):
    torch.save({"model": tiny_test_model(False).state_dict()}, tmp_path / "pretrained.pt")
    path = str(tmp_path / "pretrained.pt")
    config = student_config(tmp_path, teacher_type="icefall", teacher_checkpoint=path, teacher_model=flags)
    with pytest.raises(UserError, match=message):
        load_teacher(config, CPU)


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            {"teacher_checkpoint": "x.pt"},
            "--teacher-checkpoint: a file does not say which type",
        ),
        ({"teacher_type": "icefall", "teacher_exp_dir": "exp"}, "give --teacher-checkpoint, and no --teacher-exp-dir"),
        (
            {"teacher_type": "torchaudio", "teacher_checkpoint": "x", "teacher_cache": "c"},
            "--teacher-type torchaudio: does not go with --teacher-cache",
        ),
        (
            {"teacher_exp_dir": "exp", "teacher_cache": "c", "kd_teacher_hears": "augmented"},
            "--kd-teacher-hears augmented: a cache holds what the teacher heard in clean cuts; give",
        ),
        ({"init_from_teacher": True}, "--init-from-teacher: needs a teacher"),
        ({"kd_token_scale": 0.5}, "--kd-token-scale: needs a teacher"),
        ({"teacher_type": "icefall"}, "--teacher-type icefall: such a teacher is in a file; give --teacher-checkpoint"),
        (
            {"teacher_exp_dir": "exp", "teacher_checkpoint": "x.pt"},
            "--teacher-checkpoint: a file does not say which type",
        ),
        (
            {"teacher_type": "torchaudio", "teacher_checkpoint": "x"},
            "--teacher-type torchaudio: time warping moves the student's frames",
        ),
    ],
)
def test_flags_that_contradict_each_other_are_clear_errors(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        load_teacher(student_config(tmp_path, **flags), CPU)


OURS = DistillConfig(teacher_exp_dir="exp")
THEIRS = DistillConfig(teacher_type="icefall", teacher_checkpoint="x.pt")
TOKENS_ALONE = replace(OURS, kd_feature_scale=0.0, kd_apc_scale=0.0, kd_token_scale=0.5)
WEIGHTS_ALONE = replace(TOKENS_ALONE, kd_token_scale=0.0, init_from_teacher=True)
ALL_READ = dict(
    kd_relation_scale=0.1, kd_token_scale=0.5, kd_layer_map="similar", kd_similarity_file="cka.json",
    kd_layers=("1.0",), kd_share_branches=True, kd_branch_heads=2, kd_branch_feedforward_dim=64, kd_distance="l2",
    kd_relation_heads=2, kd_apc_shift=1, kd_apc_dim=64, kd_token_form="collapsed", kd_token_temperature=2.0,
    kd_token_shift=0, kd_warmup_batches=0,
)  # fmt: skip


@pytest.mark.parametrize(
    "distill, in_vain",
    [
        (DistillConfig(), []),
        (DistillConfig(kd_apc_scale=1.0, teacher_avg=3), ["teacher_avg", "kd_apc_scale"]),
        (replace(OURS, teacher_epoch=3, teacher_avg=2, teacher_use_averaged_model=False, **ALL_READ), []),
        (replace(THEIRS, teacher_model="--preset tiny", teacher_bpe_model="x.model", **ALL_READ), []),
        (replace(THEIRS, teacher_epoch=3, teacher_avg=2), ["teacher_epoch", "teacher_avg"]),
        (replace(OURS, teacher_model="--preset tiny"), ["teacher_model"]),
        (replace(OURS, kd_similarity_file="cka.json"), ["kd_similarity_file"]),
        (DistillConfig(full_context_scale=1.0, kd_token_shift=1), ["kd_token_shift"]),
        (DistillConfig(mode_consistency_scale=1.0, kd_token_shift="auto:2", kd_warmup_batches=3), []),
        (replace(OURS, mode_consistency_type="collapsed"), ["mode_consistency_type"]),
        (replace(OURS, mode_consistency_scale=1.0, mode_consistency_weights="non-blank", kd_token_shift=1), []),
        (replace(OURS, kd_relation_heads=2, kd_token_shift=0), ["kd_relation_heads", "kd_token_shift"]),
        (replace(OURS, kd_branch="none", kd_branch_heads=2, kd_apc_shift=1), ["kd_branch_heads"]),
        (replace(OURS, kd_feature_scale=0.0, kd_branch_heads=2, kd_distance="l2"), ["kd_branch_heads"]),
        (replace(OURS, kd_branch="none", kd_apc_scale=0.0, kd_share_branches=True), ["kd_share_branches"]),
        (replace(WEIGHTS_ALONE, teacher_cache="cache", kd_warmup_batches=3), ["teacher_cache", "kd_warmup_batches"]),
        (replace(TOKENS_ALONE, kd_layers=("1.0",), kd_distance="l2"), ["kd_layers", "kd_distance"]),
        (replace(OURS, kd_layers=("1.0:2.0",), kd_layer_map="uniform"), ["kd_layer_map"]),
        (replace(OURS, kd_layers=("1.0:2.0", "0.0"), kd_layer_map="uniform"), []),
        (
            replace(OURS, kd_layers=("1.0:2.0",), kd_layer_map="similar", kd_similarity_file="cka.json"),
            ["kd_layer_map", "kd_similarity_file"],
        ),
    ],
)
def test_flags_that_nothing_reads_are_named(distill, in_vain):
    assert flags_without_effect(distill) == in_vain


def test_clean_speech_is_read_for_a_live_teacher_alone_and_where_there_is_other_speech():
    config = ExperimentConfig(distill=OURS)
    assert config.data.enable_spec_aug and needs_clean(config)
    for distill in (
        DistillConfig(),
        WEIGHTS_ALONE,
        replace(OURS, teacher_cache="cache"),
        replace(OURS, kd_teacher_hears="augmented"),
    ):
        assert not needs_clean(replace(config, distill=distill))
    assert not needs_clean(replace(config, data=replace(config.data, enable_spec_aug=False)))


def test_a_loss_of_the_regular_lattice_is_refused_on_another(tmp_path):
    config = student_config(tmp_path, teacher_exp_dir="exp", kd_token_scale=1.0, kd_token_form="one-best")
    with pytest.raises(
        UserError,
        match="--rnnt-type modified --kd-token-form one-best: the one best path",
    ):
        load_teacher(replace(config, train=replace(config.train, rnnt_type="modified")), CPU)


def spoken(lens=(120, 90)) -> Batch:
    """Features and noise of the same length."""
    features, feature_lens, _ = random_batch(lens)
    batch = batch_of(features, feature_lens)
    batch.audio_lens = feature_lens * 160
    batch.audio = 0.1 * torch.randn(len(lens), int(batch.audio_lens.max()), generator=torch.Generator().manual_seed(1))
    return batch


def test_a_large_speech_encoder_hears_normalised_samples():
    encoder = speech_encoder("wav2vec2_model", LARGE)
    batch = spoken()
    heard = SpeechEncoderTeacher(encoder, CPU).listen(batch, ["0.2"]).layers["0.2"]
    for n, samples in enumerate(batch.audio_lens.tolist()):
        audio = batch.audio[n : n + 1, :samples]
        audio = (audio - audio.mean()) / (audio.var(unbiased=False) + 1e-5).sqrt()
        with torch.no_grad():
            layers, _ = encoder.extract_features(audio)
        frames = int(heard.lens[n])
        torch.testing.assert_close(
            heard.features[n, :frames], layers[2][0, FRAMES_AHEAD : frames + FRAMES_AHEAD], rtol=0, atol=1e-5
        )


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
    distances = [abs((middle(theirs[20 + ahead], audio) + 0.5) / 16 - our_ms) for ahead in range(5)]
    assert our_ms == 45 + 20 * 20
    assert distances.index(min(distances)) == FRAMES_AHEAD


@pytest.mark.slow
def test_a_student_learns_from_a_speech_encoder():
    student = tiny_test_model(causal=True)
    teacher = SpeechEncoderTeacher(speech_encoder("wav2vec2_model"), CPU)
    config = replace(SMALL, kd_layers=("1.1:0.1", "2.0:0.2"))
    torch.manual_seed(2)
    distiller = Distiller(config, student, teacher).eval()
    batch = spoken((60, 45))
    optimizer = torch.optim.Adam([*student.encoder.parameters(), *distiller.parameters()], lr=0.01)
    history = []
    for _ in range(15):
        taps = distiller.student_taps()
        student.encode(batch.features, batch.feature_lens, CHUNK, taps=taps)
        losses = distiller(batch, taps)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert all(history[-1][name] < 0.8 * history[0][name] for name in distiller.scales)


def test_token_losses_under_a_teacher_without_tokens_are_a_clear_error():
    teacher = SpeechEncoderTeacher(speech_encoder("wav2vec2_model"), CPU)
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

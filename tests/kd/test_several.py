"""Several teachers at once, each with its layers, losses, weight and cache."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch

from kdstream.commands import cache_teacher
from kdstream.config.distillation import DistillConfig
from kdstream.data.batch import Batch
from kdstream.errors import UserError
from kdstream.kd.distiller import Distiller
from kdstream.kd.several import Member, SeveralDistillers, SeveralTeachers, of_each
from kdstream.kd.teacher import TransducerTeacher
from kdstream.kd.teacher_cache import CachedTeacher, CacheWriter, fingerprint
from kdstream.kd.teachers import flags_without_effect, load_teacher, needs_audio
from kdstream.kd.torchaudio_teacher import TorchaudioTeacher
from kdstream.models.rnnt_loss import LossSettings
from kdstream.models.transducer import Tokens
from kdstream.training.process import train_experiment
from support.distillation import CHUNK, SMALL
from support.models import tiny_test_model
from support.teachers import ENCODER, speech_encoder, spoken, student_config
from support.training import experiment, make_corpus

CPU = torch.device("cpu")
FLAGS = DistillConfig(
    teacher_type="icefall,transformers,torchaudio",
    teacher_checkpoint="pretrained.pt,whisper,hubert.pt",
    teacher_model="--preset medium/hubert_base",
    teacher_bpe_model="theirs/bpe.model",
    kd_layers=("1.0", "2.1/1.0:0.3", "2.1:0.5/2.1:0.9"),
    kd_token_scale=0.5,
)


def test_each_teacher_has_its_own_values_of_the_flags():
    icefall, whisper, hubert = of_each(FLAGS)
    assert [one.teacher_type for one in (icefall, whisper, hubert)] == ["icefall", "transformers", "torchaudio"]
    assert [one.teacher_checkpoint for one in (icefall, whisper, hubert)] == ["pretrained.pt", "whisper", "hubert.pt"]
    assert (icefall.teacher_model, whisper.teacher_model, hubert.teacher_model) == (
        "--preset medium",
        "",
        "hubert_base",
    )
    assert (icefall.teacher_bpe_model, whisper.teacher_bpe_model) == ("theirs/bpe.model", "")
    assert [one.kd_layers for one in of_each(FLAGS)] == [("1.0", "2.1"), ("1.0:0.3", "2.1:0.5"), ("2.1:0.9",)]
    assert [one.kd_token_scale for one in of_each(FLAGS)] == [0.5, 0.0, 0.0]  # who writes no tokens gives no token loss
    alone = replace(FLAGS, teacher_type="icefall", teacher_checkpoint="pretrained.pt")
    assert of_each(alone) == [alone]


def test_weights_and_losses_are_chosen_for_each():
    flags = replace(FLAGS, teacher_scales=(1.0, 0.5, 2.0), teacher_losses=("token", "feature+apc", "feature"))
    given = [{name: scale for name, scale in one.loss_scales.items() if scale} for one in of_each(flags)]
    assert given == [{"token": 0.5}, {"feature": 0.5, "apc": 0.25}, {"feature": 2.0}]


def test_an_exp_dir_is_of_the_teacher_that_reads_it_and_a_cache_may_be_left_out():
    flags = DistillConfig(
        teacher_type="transformers,kdstream", teacher_checkpoint="whisper", teacher_exp_dir="exp/teacher/",
        teacher_cache=",cache", init_from_teacher=True,
    )  # fmt: skip
    whisper, ours = of_each(flags)
    assert (whisper.teacher_checkpoint, whisper.teacher_exp_dir, whisper.teacher_cache) == ("whisper", "", "")
    assert (ours.teacher_checkpoint, ours.teacher_exp_dir, ours.teacher_cache) == ("", "exp/teacher", "cache")
    assert [whisper.init_from_teacher, ours.init_from_teacher] == [False, True]
    assert needs_audio(flags) and not needs_audio(replace(flags, teacher_cache="a,b"))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"teacher_checkpoint": "a,b"},
            "--teacher-checkpoint a,b: must have one value for each of 3 teachers of icefall",
        ),
        ({"teacher_scales": (1.0, 2.0)}, r"--teacher-scales 1.0,2.0: must have one value for each of 3 teachers"),
        (
            {"teacher_type": "kdstream", "teacher_scales": (1.0, 2.0)},
            r"--teacher-scales 1.0,2.0: must have one value for each of 1 teacher \(--teacher-type kdstream\)",
        ),
        (
            {"teacher_type": "kdstream", "teacher_exp_dir": "a,b"},
            "--teacher-exp-dir a,b: holds several paths for one teacher; .* give --teacher-type kdstream,kdstream$",
        ),
        ({"kd_layers": ("1.0/2.0",)}, "--kd-layers 1.0/2.0: must have one value for each of 3 teachers"),
        ({"teacher_cache": "a"}, "--teacher-cache a: must have one value for each of 3"),
        ({"teacher_losses": ("token", "relation", "apc")}, "--teacher-losses .*: names relation, which no flag weighs"),
        ({"teacher_type": "icefall,whisper"}, "--teacher-type whisper: unknown; use one of kdstream, icefall"),
        (
            {"teacher_losses": ("feature", "apc", "apc")},
            "--kd-token-scale 0.5: none of the teachers gives this loss .*, or name it in --teacher-losses$",
        ),
        (
            {
                "teacher_type": "torchaudio,transformers",
                "teacher_checkpoint": "a,b",
                "teacher_model": "",
                "kd_layers": (),
            },
            "--kd-token-scale 0.5: none of the teachers gives this loss .*, or add a teacher that writes tokens$",
        ),
    ],
)
def test_flags_that_do_not_fit_several_teachers_are_clear_errors(changes, message):
    with pytest.raises(UserError, match=message):
        of_each(replace(FLAGS, **changes))


@pytest.mark.parametrize(
    "flags",
    [
        {"teacher_type": "kdstream,icefall", "teacher_checkpoint": "pretrained.pt"},
        {"teacher_type": "kdstream,kdstream"},
        {"teacher_type": "kdstream,kdstream", "teacher_exp_dir": "exp,"},
    ],
    ids=["one of two kinds", "no exp-dir", "an empty exp-dir"],
)
def test_a_teacher_of_several_without_a_place_is_refused(tmp_path, flags):
    named = f"--teacher-type {flags['teacher_type']}: no flag says where the teacher of type kdstream is; give"
    with pytest.raises(UserError, match=f"^{named} --teacher-exp-dir$"):
        load_teacher(student_config(tmp_path, **flags), CPU)


def test_what_no_teacher_reads_is_named():
    assert flags_without_effect(replace(FLAGS, kd_similarity_file="x", teacher_avg=3)) == [
        "teacher_avg",
        "kd_similarity_file",
    ]
    one = DistillConfig(teacher_exp_dir="exp", teacher_scales=(1.0,), teacher_losses=("token",))
    assert flags_without_effect(one) == ["teacher_scales", "teacher_losses"]


def members(tmp_path=None) -> list[Member]:
    """A transducer that gives tokens and one layer, and two speech encoders; with caches where a folder is given."""
    kinds = {"wav2vec2_model": "1.1:0.1", "wavlm_model": "2.0:0.2"}
    ours = replace(SMALL, kd_token_scale=1.0, kd_relation_scale=1.0, kd_layers=("1.1",))
    made = [Member(ours, TransducerTeacher(tiny_test_model(causal=False, seed=1)))]
    for kind, layer in kinds.items():
        config = replace(SMALL, kd_layers=(layer,), kd_relation_scale=0.0)
        made.append(Member(config, TorchaudioTeacher(speech_encoder(kind), CPU)))
    return made


def losses_of(distiller, student, batch, stored=None) -> dict[str, float]:
    taps = distiller.student_taps()
    tokens = Tokens(torch.full((2, 3), 4), torch.full((2,), 3))
    student(batch.features, batch.feature_lens, tokens, CHUNK, LossSettings(), taps=taps)
    return {name: loss.item() for name, loss in distiller(replace(batch, stored=stored), taps).items()}


def test_several_teachers_give_the_losses_that_each_gives_alone():
    student, batch = tiny_test_model(causal=True).eval(), spoken()
    several = SeveralDistillers(SeveralTeachers(members()), student).eval()
    expected = {}
    for n, (member, one) in enumerate(zip(members(), several.members, strict=True)):
        alone = Distiller(member.config, student, member.teacher).eval()
        alone.load_state_dict(one.state_dict())
        of_one = losses_of(alone, student, batch)
        expected.update({f"teacher{n + 1}_{name}" if n else name: loss for name, loss in of_one.items()})
    assert losses_of(several, student, batch) == pytest.approx(expected, rel=1e-6)
    assert list(expected) == [
        "feature_loss", "relation_loss", "apc_loss", "token_loss", "teacher2_feature_loss", "teacher2_apc_loss",
        "teacher3_feature_loss", "teacher3_apc_loss",
    ]  # fmt: skip
    assert set(several.weights(1e9)) == set(several.scales) == set(expected)


def test_a_teacher_that_gives_its_weights_alone_counts_in_the_names_of_losses():
    student, (first, *others) = tiny_test_model(causal=True), members()
    scales = {f"kd_{name}_scale": 0.0 for name in first.config.loss_scales}
    weights_alone = replace(first.config, init_from_teacher=True, **scales)
    several = SeveralDistillers(SeveralTeachers([Member(weights_alone, first.teacher), *others]), student)
    expected = {f"teacher{n}_{name}_loss" for n in (2, 3) for name in ("feature", "apc")}
    assert set(several.scales) == set(losses_of(several, student, spoken())) == expected


def test_beside_a_teacher_of_samples_a_transducer_hears_both_views():
    student, batch = tiny_test_model(causal=True), spoken()
    batch.second_view = batch.features + 1
    those = members()
    heard: list[list[Batch]] = [[] for _ in those]
    for member, seen in zip(those, heard, strict=True):
        listen = member.teacher.listen
        member.teacher.listen = lambda batch, names, seen=seen, listen=listen: (
            seen.append(batch) or listen(batch, names)
        )
    ours, *of_samples = SeveralDistillers(SeveralTeachers(those), student).listen(batch)
    assert [len(seen) for seen in heard] == [2, 1, 1]
    assert torch.equal(heard[0][1].features, batch.second_view)
    first, second = ours.layers["1.1"].features.chunk(2)
    assert not torch.equal(first, second)
    for one in of_samples:
        first, second = next(iter(one.layers.values())).features.chunk(2)
        assert torch.equal(first, second) and len(first) == len(batch.cut_ids)


def test_several_caches_and_a_live_teacher_give_the_losses_of_live_ones(tmp_path):
    student, batch = tiny_test_model(causal=True).eval(), spoken((120, 90), ["a", "b"])
    live = members()
    cached = list(live)
    for n in (0, 2):
        teacher, folder = live[n].teacher, tmp_path / str(n)
        CacheWriter(folder, teacher, list(teacher.shapes), "float16", fingerprint(teacher)).add(batch)
        cached[n] = live[n]._replace(teacher=CachedTeacher(teacher, folder, fingerprint(teacher)))
    seen = []
    for those in (live, cached):
        torch.manual_seed(2)
        distiller = SeveralDistillers(SeveralTeachers(those), student).eval()
        read = pickle.loads(pickle.dumps(distiller.read_stored))  # as a process that loads data may get it
        seen.append(losses_of(distiller, student, batch, None if read is None else read(batch)))
    assert seen[1] == pytest.approx(seen[0], rel=1e-3)
    with pytest.raises(UserError, match="lacks 1 of the training cuts .c.; run kdstream cache-teacher"):
        SeveralTeachers(cached).check_cuts(["a", "c"])


@pytest.mark.slow
def test_a_student_learns_from_all_of_them():
    student, batch = tiny_test_model(causal=True), spoken((60, 45))
    torch.manual_seed(2)
    distiller = SeveralDistillers(SeveralTeachers(members()), student).eval()
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], lr=0.01)
    tokens, history = Tokens(torch.full((2, 3), 4), torch.full((2,), 3)), []
    for _ in range(20):
        taps = distiller.student_taps()
        student(batch.features, batch.feature_lens, tokens, CHUNK, LossSettings(), taps=taps)
        losses = distiller(batch, taps)
        optimizer.zero_grad()
        torch.stack([distiller.scales[name] * losses[name] for name in distiller.scales]).sum().backward()
        optimizer.step()
        history.append({name: losses[name].item() for name in distiller.scales})
    lowered = {name: history[-1][name] / loss for name, loss in history[0].items()}
    assert all(ratio < 0.9 for ratio in lowered.values()), lowered


def test_the_flags_load_teachers_of_two_types(tmp_path):
    torch.save(speech_encoder("wav2vec2_model").state_dict(), tmp_path / "weights.pt")
    path, model = str(tmp_path / "weights.pt"), f"wav2vec2_model {json.dumps(ENCODER)}"
    flags = dict(teacher_type="torchaudio,torchaudio", teacher_checkpoint=f"{path},{path}", teacher_model=model)
    config = student_config(tmp_path, **flags, kd_layers=("1.1:0.1/2.0:0.2",))
    config = replace(config, data=replace(config.data, spec_aug_time_warp_factor=0))
    teacher = load_teacher(config, CPU)
    assert isinstance(teacher, SeveralTeachers)
    assert [m.config.kd_layers for m in teacher.members] == [("1.1:0.1",), ("2.0:0.2",)]
    with pytest.raises(UserError, match="--teacher-type icefall,torchaudio: a cache is of one teacher; write one for"):
        cache_teacher.main(["--teacher-type", "icefall,torchaudio", "--output", "x"])


@pytest.mark.slow
def test_a_training_under_two_teachers_resumes(tmp_path):
    data = make_corpus(tmp_path, 8)
    for name in ("one", "two"):
        train_experiment(experiment(tmp_path / name, data, causal=False, num_epochs=1, seed=len(name)))
    both = DistillConfig(
        teacher_type="kdstream,kdstream", teacher_exp_dir=f"{tmp_path / 'one'},{tmp_path / 'two'}",
        teacher_scales=(1.0, 0.5), teacher_losses=("token+feature", "feature+apc"), kd_token_scale=0.5,
        kd_branch_feedforward_dim=32, kd_apc_dim=16, kd_warmup_batches=0,
    )  # fmt: skip
    config = replace(experiment(tmp_path / "student", data, num_epochs=1, save_every_n=1), distill=both)
    train_experiment(config)
    log = next((tmp_path / "student" / "log").glob("log-train-*")).read_text()
    assert "teacher2_feature_loss=" in log and "teacher2_apc_loss=" in log and "token_loss=" in log
    train_experiment(replace(config, train=replace(config.train, resume=True, num_epochs=2)))
    assert (tmp_path / "student" / "epoch-2.pt").exists()

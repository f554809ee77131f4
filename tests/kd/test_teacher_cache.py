"""A cached teacher says what the live one says, and notices when it no longer would."""

from __future__ import annotations

import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet, NumpyFilesWriter

from kdstream.commands import cache_teacher
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig
from kdstream.data.augment import MUSAN_CUTS
from kdstream.data.mixture import REPEATED
from kdstream.data.module import AsrDataModule
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError
from kdstream.kd.cache_filling import all_cuts
from kdstream.kd.cache_shards import ENTRY, HEADER_BYTES, SUFFIX, Shards
from kdstream.kd.distiller import Distiller
from kdstream.kd.teacher import Teacher, TransducerTeacher
from kdstream.kd.teacher_cache import CachedTeacher, CacheWriter, fingerprint
from kdstream.kd.teachers import load_teacher
from kdstream.models.rnnt_loss import LossSettings
from kdstream.models.transducer import Tokens
from kdstream.training import dist
from kdstream.training.process import train_experiment
from support.disk import full_disk
from support.distillation import CHUNK, SMALL
from support.models import batch_of, random_batch, tiny_test_model
from support.training import experiment, make_corpus, make_cut

LAYERS = ["1.1", "2.0"]
FEATURES = {"num_filters": 80}
CONFIG = replace(SMALL, kd_token_scale=1.0)


def live_teacher(seed: int = 1) -> TransducerTeacher:
    return TransducerTeacher(tiny_test_model(causal=False, seed=seed))


def write(directory: Path, storage: str = "float16", lens=(120, 90), ids=("a/1", "b")) -> CachedTeacher:
    features, feature_lens, _ = random_batch(lens)
    teacher = live_teacher()
    identity = fingerprint(teacher, FEATURES)
    CacheWriter(directory, teacher, LAYERS, storage, identity).add(batch_of(features, feature_lens, ids))
    return CachedTeacher(teacher, directory, identity)


class Echo(Teacher):
    """A teacher that writes tokens and is no transducer itself."""

    writes_tokens = True

    def __init__(self) -> None:
        self.origin = live_teacher()
        self.shapes, self.output_dim = self.origin.shapes, self.origin.output_dim
        self.listen, self.lattice_logits = self.origin.listen, self.origin.lattice_logits
        self.encoder_frames, self.state_dict = self.origin.encoder_frames, self.origin.state_dict

    def listen(self, batch, layers):
        raise NotImplementedError


def losses(teacher: Teacher, cut_ids) -> dict:
    student = tiny_test_model(causal=True)
    torch.manual_seed(2)
    distiller = Distiller(CONFIG, student, teacher).eval()
    features, lens, tokens = random_batch()
    taps = distiller.student_taps()
    student(features, lens, tokens, CHUNK, LossSettings(), taps=taps)
    return distiller(batch_of(features, lens, cut_ids), taps)


@pytest.mark.parametrize("storage, tolerance", [("float16", 1e-3), ("int8", 5e-3)])
def test_losses_under_a_cached_teacher_equal_those_under_the_live_one(tmp_path, storage, tolerance):
    live = losses(live_teacher(), ["a/1", "b"])
    cached = losses(write(tmp_path, storage), ["a/1", "b"])
    assert len(live) == 4
    for name, loss in live.items():
        assert cached[name].item() == pytest.approx(loss.item(), rel=tolerance), name


@pytest.mark.slow
def test_every_teacher_that_writes_tokens_can_be_cached(tmp_path):
    teacher, (features, lens, _) = Echo(), random_batch()
    identity = fingerprint(teacher, FEATURES)
    CacheWriter(tmp_path, teacher, LAYERS, "float16", identity).add(batch_of(features, lens, ["a/1", "b"]))
    live, cached = (losses(one, ["a/1", "b"]) for one in (teacher, CachedTeacher(teacher, tmp_path, identity)))
    assert set(live) == {"feature_loss", "relation_loss", "apc_loss", "token_loss"}
    for name, loss in live.items():
        assert cached[name].item() == pytest.approx(loss.item(), rel=1e-3), name


def test_a_cut_is_found_in_any_batch_and_under_the_name_of_its_repetition(tmp_path):
    teacher = write(tmp_path)
    features, lens, _ = random_batch()
    teacher.check_cuts(["b", f"b{REPEATED}3"])
    with pytest.raises(UserError, match=rf"lacks 2 of the training cuts \(c{REPEATED}3, b{REPEATED}able\)"):
        teacher.check_cuts(["b", f"c{REPEATED}3", f"b{REPEATED}able"])  # the last is no repetition of b
    alone = teacher.listen(batch_of(features[1:, :90], lens[1:], [f"b{REPEATED}3"]), LAYERS)
    together = teacher.listen(batch_of(features, lens, ["a/1", "b"]), LAYERS)
    frames = alone.layers["2.0"].features.size(1)
    torch.testing.assert_close(alone.layers["2.0"].features[0], together.layers["2.0"].features[1, :frames])
    assert torch.equal(alone.layers["2.0"].lens, together.layers["2.0"].lens[1:])


def test_a_cache_of_8_bits_is_smaller(tmp_path):
    sizes = [write(tmp_path / storage, storage).shards.bytes for storage in ("float16", "int8")]
    assert 0.5 * sizes[0] < sizes[1] < 0.6 * sizes[0]


def test_a_cache_left_half_way_is_gone_on_with(tmp_path):
    write(tmp_path)
    shard = tmp_path / f"00000{SUFFIX}"
    whole = shard.read_bytes()
    second = HEADER_BYTES + ENTRY.itemsize
    shard.write_bytes(whole[:second] + bytes(ENTRY.itemsize) + whole[second + ENTRY.itemsize : -20])  # killed there
    half = CachedTeacher(live_teacher(), tmp_path, fingerprint(live_teacher(), FEATURES))
    with pytest.raises(UserError, match=r"lacks 1 of the training cuts \(b\); run kdstream cache-teacher"):
        half.check_cuts(["a/1", "b"])
    write(tmp_path).check_cuts(["a/1", "b"])
    assert shard.read_bytes() == whole


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_on_a_full_disk_the_cache_keeps_what_it_holds(tmp_path, storage):
    write(tmp_path, storage)
    shard = tmp_path / f"00000{SUFFIX}"
    with full_disk(shard.stat().st_size + 2000), pytest.raises(UserError, match="cannot be written .*; free space on"):
        write(tmp_path, storage, lens=(120, 90, 100), ids=("a/1", "b", "c"))
    assert len(Shards(tmp_path)) == 2
    losses(CachedTeacher(live_teacher(), tmp_path, fingerprint(live_teacher(), FEATURES)), ["a/1", "b"])
    write(tmp_path, storage, lens=(120, 90, 100), ids=("a/1", "b", "c")).check_cuts(["a/1", "b", "c"])


def test_what_a_cache_cannot_serve_is_a_clear_error(tmp_path):
    teacher = write(tmp_path)
    features, lens, _ = random_batch()
    with pytest.raises(UserError, match=r"lacks 1 of the training cuts \(c\); run .* of --bpe-model, .*-cuts$"):
        teacher.listen(batch_of(features, lens, ["a/1", "c"]), LAYERS)
    with pytest.raises(UserError, match="cut b has 90 frames there and 80 here; its features have changed"):
        teacher.listen(batch_of(features, torch.tensor([120, 80]), ["a/1", "b"]), LAYERS)
    with pytest.raises(UserError, match="lacks layers 0.0; write it with --layers 0.0,1.1,2.0"):
        teacher.listen(batch_of(features, lens, ["a/1", "b"]), ["0.0"])
    with pytest.raises(UserError, match="is of another teacher or of other features"):
        CachedTeacher(live_teacher(), tmp_path, fingerprint(live_teacher(), {"num_filters": 40}))
    with pytest.raises(UserError, match="is of another teacher"):
        CachedTeacher(live_teacher(3), tmp_path, fingerprint(live_teacher(3), FEATURES))
    with pytest.raises(UserError, match="holds the cache of another teacher, layers or format"):
        write(tmp_path, "int8")
    with pytest.raises(UserError, match="--teacher-cache .*none: .*write it with kdstream cache-teacher"):
        CachedTeacher(live_teacher(), tmp_path / "none", "")


@pytest.mark.slow
def test_train_reads_the_cache_that_the_command_wrote(tmp_path, capsys):
    data = make_corpus(tmp_path, 12)
    teacher = experiment(tmp_path / "teacher", data, causal=False, num_epochs=1, max_train_batches=2)
    train_experiment(replace(teacher, train=replace(teacher.train, max_train_batches=0)))
    cache_teacher.main(cache_flags(tmp_path))
    assert "layers 1.1, 2.0 of" in capsys.readouterr().out
    assert len(Shards(tmp_path / "cache")) == 12 and len(list((tmp_path / "cache").iterdir())) == 1

    cached = DistillConfig(teacher_exp_dir=str(tmp_path / "teacher"), kd_branch_feedforward_dim=32, kd_apc_dim=16,
                           teacher_cache=str(tmp_path / "cache"))  # fmt: skip
    seen = []
    for name, distill in (("cached", cached), ("live", replace(cached, teacher_cache=""))):
        config = experiment(tmp_path / name, data, num_epochs=1, save_every_n=1000)
        train_experiment(replace(config, distill=distill))
        saved = torch.load(tmp_path / name / "epoch-1.pt", weights_only=True)
        seen.append((saved["best_train_loss"], saved["batch_idx_train"]))
    assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-2) and seen[0][1] == seen[1][1] > 2


def with_noise_and_masks(tmp_path: Path, num_utterances: int) -> DataConfig:
    """A corpus with copies at other speeds, as prepare.sh names them, and everything that disturbs the student."""
    data = make_corpus(tmp_path, num_utterances)
    cuts = list(CutSet.from_file(data.train_cuts[0]))
    perturbed = [cut.with_id(f"{cut.id}_sp{speed}") for cut in cuts for speed in ("0.9", "1.1")]
    CutSet.from_cuts([*cuts, *perturbed]).to_file(tmp_path / "perturbed.jsonl.gz")
    noise = np.random.default_rng(1).normal(-4.0, 1.0, (500, 80)).astype(np.float32)
    cut = make_cut("noise", noise, "", NumpyFilesWriter(tmp_path / "noise"))
    CutSet.from_cuts([cut]).to_file(tmp_path / MUSAN_CUTS)
    disturbed = {"enable_musan": True, "enable_spec_aug": True, "spec_aug_time_warp_factor": 0}
    return replace(data, train_cuts=(str(tmp_path / "perturbed.jsonl.gz"),), manifest_dir=str(tmp_path), **disturbed)


def test_a_live_teacher_gives_the_losses_of_a_cached_one_under_noise_and_masks(tmp_path):
    data = with_noise_and_masks(tmp_path, 6)
    teacher, identity = live_teacher(), "of the test"
    writer = CacheWriter(tmp_path / "cache", teacher, LAYERS, "float16", identity)
    for batch in AsrDataModule(all_cuts(data), 0).train_dataloader(1):
        writer.add(batch)
    cached = CachedTeacher(teacher, tmp_path / "cache", identity)
    student = tiny_test_model(causal=True).eval()
    seen: dict[str, list[float]] = {}
    for name, one, with_clean in (("live", teacher, True), ("cached", cached, False), ("augmented", teacher, False)):
        torch.manual_seed(2)
        distiller = Distiller(CONFIG, student, one).eval()
        module = AsrDataModule(data, 7, with_clean=with_clean)
        module.read_stored = distiller.read_stored
        cached.check_cuts(module.training_cut_ids())
        for batch in module.train_dataloader(1):
            assert (batch.stored is not None) == (name == "cached")
            tokens = Tokens(torch.full((len(batch.texts), 3), 4), torch.full((len(batch.texts),), 3))
            taps = distiller.student_taps()
            student(batch.features, batch.feature_lens, tokens, CHUNK, LossSettings(), taps=taps)
            seen.setdefault(name, []).extend(loss.item() for loss in distiller(batch, taps).values())
    assert seen["cached"] == pytest.approx(seen["live"], rel=1e-3) and len(seen["live"]) >= 4 * 4
    assert seen["augmented"] != pytest.approx(seen["live"], rel=1e-2)


@pytest.mark.slow
def test_several_processes_fill_one_cache_with_what_one_would_store(tmp_path, capfd):
    data = make_corpus(tmp_path, 12)
    train_experiment(experiment(tmp_path / "teacher", data, causal=False, num_epochs=1))
    cache_teacher.main(cache_flags(tmp_path))
    cache_teacher.main([*cache_flags(tmp_path)[:-1], str(tmp_path / "of-two"), "--world-size", "2"])
    one, two = Shards(tmp_path / "cache"), Shards(tmp_path / "of-two")
    assert [len(shard.entries) for shard in one.shards] == [12] and len(two) == 12 and len(two.shards) <= 2
    assert one.bytes == two.bytes and one.header == two.header
    names = [cut.id for cut in CutSet.from_file(data.train_cuts[0])]
    assert -1 not in two.find(names)
    teacher = live_teacher()
    both = [CachedTeacher(teacher, folder.directory, folder.header["fingerprint"]) for folder in (one, two)]
    for batch in AsrDataModule(all_cuts(data), 0).train_dataloader(1):
        heard = [one.listen(batch, LAYERS) for one in both]
        assert torch.equal(heard[0].encoder_out, heard[1].encoder_out)
    assert capfd.readouterr().out.count("GB are free") == 2


@pytest.mark.slow
def test_what_a_cache_costs_is_told_and_what_the_disk_cannot_hold_is_refused(tmp_path, monkeypatch, capsys):
    data = make_corpus(tmp_path, 12)
    train_experiment(experiment(tmp_path / "teacher", data, causal=False, num_epochs=1))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused = r"--output .*cache: the cache takes \d+ MB an hour, .* GB for .* h of speech, .* free; free space or name"
    with pytest.raises(UserError, match=refused):
        cache_teacher.main(cache_flags(tmp_path))
    assert not (tmp_path / "cache").exists()
    monkeypatch.undo()
    cache_teacher.main([*cache_flags(tmp_path), "--layers", "none"])
    out = capsys.readouterr().out
    assert re.search(r"teacher: \d+ s of speech a second, \S+ h for all of it", out) and "layers none of" in out
    told = float(re.findall(r"cache: (\d+) MB an hour", out)[-1]) * 1e6
    hours = sum(cut.duration for cut in CutSet.from_file(data.train_cuts[0])) / 3600
    assert Shards(tmp_path / "cache").bytes == pytest.approx(
        told * hours, rel=0.1
    )  # short utterances lose frames at their ends
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    cache_teacher.main([*cache_flags(tmp_path), "--layers", "none"])  # needs nothing more


def cache_flags(tmp_path: Path) -> list[str]:
    return ["--teacher-exp-dir", str(tmp_path / "teacher"), "--output", str(tmp_path / "cache")]


def test_parts_that_are_typed_go_before_the_cuts_of_the_teachers_training(tmp_path, monkeypatch):
    config = ExperimentConfig(data=DataConfig(train_cuts=("theirs.jsonl.gz",)))
    (tmp_path / "teacher").mkdir()
    config.save(tmp_path / "teacher")
    launched = []
    monkeypatch.setattr(dist, "launch", lambda _, config, device: launched.append(config.data))
    for flags, cuts in (([], ("theirs.jsonl.gz",)), (["--train-parts", "a,b"], ())):
        cache_teacher.main([*cache_flags(tmp_path), *flags])
        assert launched[-1].train_cuts == cuts
    assert launched[-1].train_parts == ("a", "b")


def make_teacher(tmp_path: Path, data) -> None:
    """Trains it, and stores what it hears."""
    train_experiment(experiment(tmp_path / "teacher", data, causal=False, num_epochs=1))
    cache_teacher.main(cache_flags(tmp_path))


def distilled(tmp_path: Path, name: str, data):
    directories = {"teacher_exp_dir": str(tmp_path / "teacher"), "teacher_cache": str(tmp_path / "cache")}
    return replace(experiment(tmp_path / name, data, num_epochs=1), distill=DistillConfig(**directories))


@pytest.mark.slow
def test_a_cache_that_lacks_cuts_is_refused_before_the_first_step(tmp_path):
    data = make_corpus(tmp_path, 12)
    make_teacher(tmp_path, data)
    shard = tmp_path / "cache" / f"00000{SUFFIX}"
    last = HEADER_BYTES + 11 * ENTRY.itemsize
    whole = shard.read_bytes()
    shard.write_bytes(whole[:last] + bytes(ENTRY.itemsize) + whole[last + ENTRY.itemsize :])
    with pytest.raises(UserError, match=r"lacks 1 of the training cuts \(utterance-\d+\); run kdstream cache-teacher"):
        train_experiment(distilled(tmp_path, "student", data))
    assert not (tmp_path / "student" / "config.json").exists()
    cache_teacher.main(cache_flags(tmp_path))  # completes it
    assert shard.read_bytes() == whole
    train_experiment(distilled(tmp_path, "student", data))


@pytest.mark.slow
def test_other_speech_under_the_same_names_is_refused(tmp_path):
    data = make_corpus(tmp_path, 12)
    make_teacher(tmp_path, data)
    shard = tmp_path / "cache" / f"00000{SUFFIX}"
    slots = np.memmap(shard, ENTRY, "r+", HEADER_BYTES, (12,))
    slots["mean"][7] += 0.1  # one cut, which masks hide in part
    slots.flush()
    masked = replace(data, enable_spec_aug=True, spec_aug_time_warp_factor=0)
    for name, student in (("plain", data), ("student", masked)):
        with pytest.raises(UserError, match="--teacher-cache .*: cut utterance-.* is of other speech there; its feat"):
            train_experiment(distilled(tmp_path, name, student))
    slots["mean"] += 0.1
    slots.flush()
    with pytest.raises(UserError, match="--output .*: cut utterance-.* is of other speech there"):
        cache_teacher.main(cache_flags(tmp_path))
    slots["mean"] -= 0.1
    slots["mean"][7] -= 0.1
    slots.flush()
    train_experiment(distilled(tmp_path, "masked", masked))


def test_speech_under_noise_is_held_against_nothing_and_the_rest_is(tmp_path):
    data = with_noise_and_masks(tmp_path, 6)
    module = AsrDataModule(data, 7)
    module.read_stored = lambda batch: torch.zeros(len(batch.cut_ids), 1)
    means = [mean for batch in module.train_dataloader(1) for mean in batch.means or ()]
    plain = AsrDataModule(replace(all_cuts(data), shuffle=True), 7)
    plain.read_stored = module.read_stored
    expected = [mean for batch in plain.train_dataloader(1) for mean in batch.means or ()]
    assert len(means) == 18 and 3 < means.count(None) < 15
    assert [a for a, b in zip(expected, means, strict=True) if b is not None] == [b for b in means if b is not None]


def test_a_damaged_or_old_cache_is_a_clear_error(tmp_path):
    write(tmp_path / "new")
    shard = tmp_path / "new" / f"00000{SUFFIX}"
    shard.write_bytes(shard.read_bytes()[:-50])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "cache.json").write_text('{"version": 2}')
    for name, problem in (("new", "damaged, or no shard"), ("old", "a cache of an older format")):
        with pytest.raises(UserError, match=rf"--teacher-cache .*{problem}.*; delete the cache and write it anew"):
            CachedTeacher(live_teacher(), tmp_path / name, "")
        with pytest.raises(UserError, match=rf"{problem}.*; delete the cache and write it anew"):
            write(tmp_path / name)


@pytest.mark.slow
def test_two_cuts_of_one_name_are_refused(tmp_path):
    data = make_corpus(tmp_path, 4)
    twice = replace(data, train_cuts=2 * data.train_cuts)
    with pytest.raises(UserError, match="training cuts: two cuts have the id utterance-.*; rename one"):
        make_teacher(tmp_path, twice)


def what_is_read(teacher: CachedTeacher, **changes) -> list[tuple[str, str]]:
    Distiller(replace(CONFIG, **changes), tiny_test_model(causal=True), teacher)
    return [(c.layer, c.tensor) for c in teacher._reader.columns]


def test_what_no_loss_reads_is_not_read(tmp_path):
    teacher = write(tmp_path)
    features = [(layer, "features") for layer in LAYERS]
    encoder_out = [("encoder_out", "features")]
    no_layers = {"kd_feature_scale": 0.0, "kd_apc_scale": 0.0, "kd_relation_scale": 0.0}
    assert what_is_read(teacher, **no_layers) == encoder_out
    assert what_is_read(teacher, kd_relation_scale=0.0) == encoder_out + features
    assert what_is_read(teacher, kd_relation_scale=0.0, kd_token_scale=0.0) == features
    assert len(what_is_read(teacher)) == 1 + 4 * len(LAYERS)


def test_what_the_loader_reads_gives_the_losses_of_what_the_step_reads(tmp_path):
    student, teacher = tiny_test_model(causal=True), write(tmp_path)
    torch.manual_seed(2)
    distiller = Distiller(CONFIG, student, teacher).eval()
    features, lens, tokens = random_batch()
    batch = batch_of(features, lens, ["a/1", "b"])
    reader = pickle.loads(pickle.dumps(distiller.read_stored))  # as a process that loads data may get it
    taps = distiller.student_taps()
    student(features, lens, tokens, CHUNK, LossSettings(), taps=taps)
    read_before = distiller(replace(batch, stored=reader(batch)), taps)
    assert read_before == distiller(batch, taps) and len(read_before) == 4


def test_a_cache_without_attention_serves_what_needs_none(tmp_path):
    teacher, (features, lens, _) = live_teacher(), random_batch()
    identity = fingerprint(teacher, FEATURES)
    batch = batch_of(features, lens, ["a/1", "b"])
    CacheWriter(tmp_path, teacher, LAYERS, "float16", identity, attention=False).add(batch)
    cached = CachedTeacher(teacher, tmp_path, identity)
    assert cached.shards.bytes < 0.7 * write(tmp_path / "all").shards.bytes
    for name in LAYERS:
        live, heard = (one.listen(batch, LAYERS).layers[name] for one in (teacher, cached))
        frames = heard.features.size(1)
        torch.testing.assert_close(heard.features[0], live.features[0, :frames], rtol=1e-3, atol=1e-3)
        assert heard.query.shape == (2, frames, 0) and torch.equal(heard.lens, live.lens)
    with pytest.raises(UserError, match="lacks the attention .query, key, value. of layers 1.1,2.0; write it with"):
        Distiller(CONFIG, tiny_test_model(causal=True), cached)


def test_cuts_whose_names_differ_in_a_slash_alone_are_kept_apart(tmp_path):
    alone = write(tmp_path / "alone", ids=("a/1", "b"))
    both = write(tmp_path / "both", ids=("a/1", "a_1"))
    features, lens, _ = random_batch()
    expected = alone.listen(batch_of(features, lens, ["a/1", "b"]), LAYERS).layers[LAYERS[0]].features
    heard = both.listen(batch_of(features, lens, ["a/1", "a_1"]), LAYERS).layers[LAYERS[0]].features
    torch.testing.assert_close(heard, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_time_warping_beside_a_cache_is_refused(tmp_path):
    data = replace(make_corpus(tmp_path, 8), enable_spec_aug=True)
    teacher = experiment(tmp_path / "teacher", data, causal=False, num_epochs=1)
    train_experiment(teacher)
    config = experiment(tmp_path / "student", data)
    distill = DistillConfig(teacher_exp_dir=str(tmp_path / "teacher"), teacher_cache=str(tmp_path / "cache"))
    vocab_size = Tokenizer(data.bpe_model).vocab_size
    config = replace(config, distill=distill, model=replace(config.model, vocab_size=vocab_size))
    with pytest.raises(UserError, match="--teacher-cache .*cache: time warping .* --spec-aug-time-warp-factor 0"):
        load_teacher(config, torch.device("cpu"))
    with pytest.raises(UserError, match="--teacher-cache .*cache: no .*.shard there"):
        load_teacher(replace(config, data=replace(data, spec_aug_time_warp_factor=0)), torch.device("cpu"))
    with pytest.raises(UserError, match="--teacher-cache: needs a teacher"):
        load_teacher(replace(config, distill=DistillConfig(teacher_cache="cache")), torch.device("cpu"))

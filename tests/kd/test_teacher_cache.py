"""A cached teacher says what the live one says, and notices when it no longer would."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdstream.commands import cache_teacher
from kdstream.config.sections import DistillConfig
from kdstream.data.mixture import REPEATED
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError
from kdstream.kd.distiller import Distiller
from kdstream.kd.teacher import Teacher, TransducerTeacher
from kdstream.kd.teacher_cache import INDEX, CachedTeacher, CacheWriter, fingerprint, read_index
from kdstream.kd.teachers import load_teacher
from kdstream.models.rnnt_loss import LossSettings
from kdstream.training import loop
from support.disk import full_disk
from support.distillation import CHUNK, SMALL
from support.models import batch_of, random_batch, tiny_test_model
from support.training import experiment, make_corpus

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


@pytest.mark.parametrize("storage, tolerance", [("float16", 1e-3), ("lilcom", 2e-2)])
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
    sizes = []
    for storage in ("float16", "lilcom"):
        write(tmp_path / storage, storage)
        sizes.append(sum(path.stat().st_size for path in (tmp_path / storage / "arrays").rglob("*.*")))
    assert 0.3 * sizes[0] < sizes[1] < 0.7 * sizes[0]


def test_what_float16_cannot_hold_is_stored_as_its_largest_number(tmp_path, monkeypatch):
    hear = TransducerTeacher.hear
    louder = lambda *args: hear(*args)._replace(encoder_out=1e6 * hear(*args).encoder_out)  # noqa: E731
    monkeypatch.setattr(TransducerTeacher, "hear", louder)
    features, lens, _ = random_batch()
    stored = write(tmp_path).listen(batch_of(features, lens, ["a/1", "b"]), LAYERS).encoder_out
    assert stored.abs().max().item() == 65504.0


def test_a_cache_left_half_way_is_gone_on_with(tmp_path):
    write(tmp_path)
    index = tmp_path / INDEX
    whole = index.read_text()
    index.write_text(whole[: len(whole) - 20])  # killed while the second cut was written down
    assert read_index(tmp_path).keys() == {"a/1"}  # what a student finds there meanwhile
    with pytest.raises(UserError, match=r"lacks 1 of the training cuts \(b\); run local/cache_teacher.py"):
        CachedTeacher(live_teacher(), tmp_path, fingerprint(live_teacher(), FEATURES)).check_cuts(["a/1", "b"])
    assert read_index(write(tmp_path).directory).keys() == {"a/1", "b"}
    losses(write(tmp_path), ["a/1", "b"])
    assert index.read_text() == whole


def test_what_a_cache_holds_is_never_written_again(tmp_path, monkeypatch):
    write(tmp_path)
    index, arrays = tmp_path / INDEX, sorted((tmp_path / "arrays").rglob("*.npy"))
    first, second = index.read_text().splitlines(keepends=True)
    index.write_text(first + second[:30])
    times = {path: path.stat().st_mtime_ns for path in arrays}
    inode = index.stat().st_ino

    def truncate_alone(path, *args, **kwargs):
        raise AssertionError(f"{path} is rewritten")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", truncate_alone)
        write(tmp_path)
    assert index.read_text() == first + second and index.stat().st_ino == inode
    written = [path for path in arrays if path.stat().st_mtime_ns != times[path]]
    assert 0 < len(written) < len(arrays) and all(path.name.startswith("b-") for path in written)


@pytest.mark.parametrize("line", ["{half of it\n", '["a list"]\n', '{"cut": "a/1", "mean": 0.0}\n', "\0\0\0\0\n"])
def test_a_damaged_line_of_the_index_is_named(tmp_path, line):
    teacher = write(tmp_path)
    with (tmp_path / INDEX).open("a") as index:
        index.write(line)
    for reader in (lambda: write(tmp_path), lambda: CachedTeacher(teacher, tmp_path, "")):
        with pytest.raises(UserError, match=rf"{INDEX}: line 3 is damaged; delete the cache and write it anew"):
            reader()


@pytest.mark.parametrize("storage", ["float16", "lilcom"])
def test_on_a_full_disk_the_cache_keeps_what_it_holds(tmp_path, storage):
    write(tmp_path, storage)
    index = (tmp_path / INDEX).read_text()
    with full_disk(2000), pytest.raises(UserError, match="cannot be written .*; free space on its disk"):
        write(tmp_path, storage, lens=(120, 90, 100), ids=("a/1", "b", "c"))
    assert read_index(tmp_path).keys() == {"a/1", "b"} and (tmp_path / INDEX).read_text() == index
    write(tmp_path, storage, lens=(120, 90, 100), ids=("a/1", "b", "c"))
    assert read_index(tmp_path).keys() == {"a/1", "b", "c"}


def test_what_a_cache_cannot_serve_is_a_clear_error(tmp_path):
    teacher = write(tmp_path)
    features, lens, _ = random_batch()
    with pytest.raises(UserError, match=r"lacks 1 of the training cuts \(c\); run local/cache_teacher.py on all of"):
        teacher.listen(batch_of(features, lens, ["a/1", "c"]), LAYERS)
    with pytest.raises(UserError, match="cut b has 22 frames there and 18 here; its features have changed"):
        teacher.listen(batch_of(features, torch.tensor([120, 80]), ["a/1", "b"]), LAYERS)
    with pytest.raises(UserError, match="lacks layers 0.0; write it with --layers 0.0,1.1,2.0"):
        teacher.listen(batch_of(features, lens, ["a/1", "b"]), ["0.0"])
    with pytest.raises(UserError, match="is of another teacher or of other features"):
        CachedTeacher(live_teacher(), tmp_path, fingerprint(live_teacher(), {"num_filters": 40}))
    with pytest.raises(UserError, match="is of another teacher"):
        CachedTeacher(live_teacher(3), tmp_path, fingerprint(live_teacher(3), FEATURES))
    with pytest.raises(UserError, match="holds the cache of another teacher, layers or format"):
        write(tmp_path, "lilcom")
    with pytest.raises(UserError, match="--teacher-cache .*none: .*write it with local/cache_teacher.py"):
        CachedTeacher(live_teacher(), tmp_path / "none", "")
    for path in (tmp_path / "arrays").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cut a/1 cannot be read"):
        teacher.listen(batch_of(features, lens, ["a/1", "b"]), LAYERS)


@pytest.mark.slow
def test_train_reads_the_cache_that_the_command_wrote(tmp_path, capsys):
    data = make_corpus(tmp_path, 12)
    teacher = experiment(tmp_path / "teacher", data, causal=False, num_epochs=1, max_train_batches=2)
    loop.train_experiment(replace(teacher, train=replace(teacher.train, max_train_batches=0)))
    cache_teacher.main(cache_flags(tmp_path))
    assert "layers 1.1, 2.0 of" in capsys.readouterr().out
    assert len(read_index(tmp_path / "cache")) == 12

    cached = DistillConfig(teacher_exp_dir=str(tmp_path / "teacher"), kd_branch_feedforward_dim=32, kd_apc_dim=16,
                           teacher_cache=str(tmp_path / "cache"))  # fmt: skip
    seen = []
    for name, distill in (("cached", cached), ("live", replace(cached, teacher_cache=""))):
        config = experiment(tmp_path / name, data, num_epochs=1, save_every_n=1000)
        loop.train_experiment(replace(config, distill=distill))
        saved = torch.load(tmp_path / name / "epoch-1.pt", weights_only=True)
        seen.append((saved["best_train_loss"], saved["batch_idx_train"]))
    assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-2) and seen[0][1] == seen[1][1] > 2


def cache_flags(tmp_path: Path) -> list[str]:
    return ["--teacher-exp-dir", str(tmp_path / "teacher"), "--output", str(tmp_path / "cache")]


def make_teacher(tmp_path: Path, data) -> None:
    """Trains it, and stores what it hears."""
    loop.train_experiment(experiment(tmp_path / "teacher", data, causal=False, num_epochs=1))
    cache_teacher.main(cache_flags(tmp_path))


def distilled(tmp_path: Path, name: str, data):
    directories = {"teacher_exp_dir": str(tmp_path / "teacher"), "teacher_cache": str(tmp_path / "cache")}
    return replace(experiment(tmp_path / name, data, num_epochs=1), distill=DistillConfig(**directories))


@pytest.mark.slow
def test_a_cache_that_lacks_cuts_is_refused_before_the_first_step(tmp_path):
    data = make_corpus(tmp_path, 12)
    make_teacher(tmp_path, data)
    index = tmp_path / "cache" / INDEX
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[1:]))
    missing = json.loads(lines[0])["cut"]
    with pytest.raises(UserError, match=rf"lacks 1 of the training cuts \({missing}\); run local/cache_teacher.py"):
        loop.train_experiment(distilled(tmp_path, "student", data))
    assert not (tmp_path / "student" / "config.json").exists()
    cache_teacher.main(cache_flags(tmp_path))  # completes it
    loop.train_experiment(distilled(tmp_path, "student", data))


@pytest.mark.slow
def test_other_speech_under_the_same_names_is_refused(tmp_path):
    data = make_corpus(tmp_path, 12)
    make_teacher(tmp_path, data)
    index = tmp_path / "cache" / INDEX
    entries = [json.loads(line) for line in index.read_text().splitlines()]
    for entry in entries:
        entry["mean"] += 0.1
    index.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(UserError, match="--teacher-cache .*: cut utterance-.* is of other speech there; its features"):
        loop.train_experiment(distilled(tmp_path, "student", data))
    with pytest.raises(UserError, match="--output .*: cut utterance-.* is of other speech there"):
        cache_teacher.main(cache_flags(tmp_path))
    masked = replace(data, enable_spec_aug=True, spec_aug_time_warp_factor=0)  # no telling then
    loop.train_experiment(distilled(tmp_path, "masked", masked))


def test_a_damaged_cache_is_a_clear_error(tmp_path):
    write(tmp_path)
    header = tmp_path / "cache.json"
    text = header.read_text()
    header.write_text(text[:50])
    with pytest.raises(UserError, match="holds the cache of another teacher, layers or format; delete it"):
        write(tmp_path)
    with pytest.raises(UserError, match="--teacher-cache .*; write it with local/cache_teacher.py"):
        CachedTeacher(live_teacher(), tmp_path, "")
    header.write_text(text.replace('"version": 2', '"version": 1'))
    with pytest.raises(UserError, match="--teacher-cache .*of version 1, not 2; write it with"):
        CachedTeacher(live_teacher(), tmp_path, "")


@pytest.mark.slow
def test_two_cuts_of_one_name_are_refused(tmp_path):
    data = make_corpus(tmp_path, 4)
    twice = replace(data, train_cuts=2 * data.train_cuts)
    with pytest.raises(UserError, match="training cuts: two cuts have the id utterance-.*; rename one"):
        make_teacher(tmp_path, twice)


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
    loop.train_experiment(teacher)
    config = experiment(tmp_path / "student", data)
    distill = DistillConfig(teacher_exp_dir=str(tmp_path / "teacher"), teacher_cache=str(tmp_path / "cache"))
    vocab_size = Tokenizer(data.bpe_model).vocab_size
    config = replace(config, distill=distill, model=replace(config.model, vocab_size=vocab_size))
    with pytest.raises(UserError, match="--teacher-cache .*cache: time warping .* --spec-aug-time-warp-factor 0"):
        load_teacher(config, torch.device("cpu"))
    with pytest.raises(UserError, match="--teacher-cache .*cache: .*No such file"):
        load_teacher(replace(config, data=replace(data, spec_aug_time_warp_factor=0)), torch.device("cpu"))
    with pytest.raises(UserError, match="--teacher-cache: needs a teacher"):
        load_teacher(replace(config, distill=DistillConfig(teacher_cache="cache")), torch.device("cpu"))

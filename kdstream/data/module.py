"""Loaders of the training, validation and test cuts that the settings name.

What makes a batch depends on (seed, epoch, position in the epoch) alone: the sampler runs in the
training process, and augmentation draws from a generator seeded by (seed, epoch, cut id).  So the
number of data loading processes, the number of training processes and a resume in mid-epoch change
neither the order of the batches nor their content.

Shapes: N batch, T feature frames of 10 ms, 80 mel bins.
"""

from __future__ import annotations

import math
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from itertools import chain, islice
from pathlib import Path

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicCutSampler
from torch import Tensor

from kdstream.config.sections import LIBRISPEECH, DataConfig
from kdstream.data.augment import Augmentation, Epoch
from kdstream.data.batch import Batch, Utterance
from kdstream.data.checks import SHORTER, STREAM, check_data, check_length, check_readable, check_text
from kdstream.data.cuts import DistinctIds, cuts_name, iterate, read_manifest, text_of, without_text
from kdstream.data.loader import AsrDataset, BatchLoader
from kdstream.data.mixture import CutsBeside, Mixture, ids_in_manifest, mix
from kdstream.data.reading import check_filter_bank, read_utterance
from kdstream.data.sampler import Batches, Share, windows_of
from kdstream.data.selection import Rules, Selection, select
from kdstream.data.shar import find_shards
from kdstream.data.shards import ShardedCuts
from kdstream.data.tokenizer import Tokenizer, UnknownLetters
from kdstream.errors import UserError, option
from kdstream.models.streaming import ChunkConfig

LOOKED_AT = 1000  # cuts, for one with stored features and audio, at each start


class Utterances(Sequence[Utterance]):
    """The utterances of a test set, read from audio one by one as they are asked for."""

    def __init__(self, cuts: CutSet, extractor: str) -> None:
        self.cuts, self.extractor = list(cuts), extractor

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, index: int) -> Utterance:  # type: ignore[override]
        return read_utterance(self.cuts[index], True, self.extractor)


class AsrDataModule:
    """Loaders of training, validation and test data, as `config` names them.

    Args:
      config: which cuts, and how they become batches.
      seed: of data order and augmentation.
      with_audio, with_clean: whether a teacher listens to the audio of training cuts, and to them without noise and
        masks.
      with_texts: whether training cuts need texts; only a teacher does without.
      pin_memory: for a GPU; see Batch.pin_memory.
    Raises:
      UserError: (here or while iterating) naming the manifest, file or cut at fault, and the fix.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        with_audio: bool = False,
        with_clean: bool = False,
        pin_memory: bool = False,
        with_texts: bool = True,
    ) -> None:
        self.config, self.seed, self.pin_memory, self.with_texts = config, seed, pin_memory, with_texts
        self.with_audio, self.with_clean = with_audio, with_clean
        self.tokenizer = Tokenizer(config.bpe_model)
        self.read_stored: Callable[[Batch], Tensor] | None = None  # makes Batch.stored of training cuts
        self.two_views = False  # whether training batches have a second view
        self._train: TrainingCuts | ShardedCuts | None = None
        self._training_ids = DistinctIds("training cuts")  # pseudo-labelled ones too
        self._test: dict[str, Utterances] | None = None

    def train_dataloader(
        self, epoch: int, world_size: int = 1, rank: int = 0, done: int = 0, window: tuple[int, int] = (0, 0)
    ) -> BatchLoader:
        """Batches of one epoch for process `rank` of `world_size`, which takes every world_size-th of them.

        `done` leaves out the first batches, of all processes, unread: a resumed epoch goes on exactly where the
        interrupted one stopped, with any number of processes.  Reading begins at `window`, which a loader of this
        epoch gave as its `window_of(done)`, or before.
        """
        config, train = self.config, self.look_at_training_cuts()
        order = Batches(partial(train.windows, epoch), config, Epoch(self.seed, epoch), window)
        augmentation = Augmentation(config, Epoch(self.seed, epoch))
        for_teacher = self.with_audio, self.tokenizer, self.with_clean, self.read_stored, self.two_views
        dataset = AsrDataset(*self._read_from, augmentation, *for_teacher)
        num_batches = math.ceil(train.seconds / config.max_duration / world_size)
        batches = Share(order, world_size, rank, done - window[1])
        how = num_batches, config.num_workers, self.pin_memory
        return BatchLoader(dataset, batches, *how, self._with_manifest, order)

    @property
    def _read_from(self) -> tuple[bool, str]:
        """Whether features of training cuts are computed from audio, and by which extractor."""
        return self.config.on_the_fly_feats, self.config.feature_extractor

    def _with_manifest(self, error: UserError, cut_id: str) -> UserError:
        """An error at a training cut, with the manifest that holds the cut and the flag that names it.

        One that names a flag already is not of the cut itself.
        """
        if error.flag or isinstance(self._train, ShardedCuts):  # to look for a cut in them takes an epoch
            return error
        for flag, path in self._training_manifests():
            ids = (cut.id for cut in iterate(read_manifest(path, trusted=True)))
            name = next((each for each in ids if each in ids_in_manifest(cut_id)), None)
            if name is not None:
                problem, fix = (text.replace(cut_id, name) for text in (error.problem, error.fix))
                named = problem if f"cut {name}" in problem else f"cut {name}: {problem}"
                return UserError(f"{path}: {named}", flag=flag, fix=fix)
        return error

    def _training_manifests(self) -> Iterator[tuple[str, Path]]:
        """The flag that names it, and the path, of each manifest that training takes cuts of."""
        labelled = "--train-cuts" if self.config.train_cuts else "--train-parts"
        yield from ((labelled, path) for path in self.paths("train"))
        for name in ("pseudo_cuts", "unlabelled_cuts"):
            yield from ((option(name), Path(path)) for path in getattr(self.config, name))

    def look_at_training_cuts(self) -> TrainingCuts | ShardedCuts:
        """Which training cuts are used; the first call decides it."""
        if self._train is None:
            self._train = self._shard_training_cuts() or self._select_training_cuts()
        return self._train

    def training_cut_ids(self) -> Iterator[str]:
        """Of all cuts that an epoch may take."""
        train = self.look_at_training_cuts()
        if isinstance(train, ShardedCuts):  # nobody knows them before they are read
            return
        for cuts in train.kinds:
            yield from (cut.id for cut in iterate(cuts))

    def valid_dataloader(self, world_size: int = 1, rank: int = 0, with_audio: bool = False) -> BatchLoader:
        """All validation cuts that the loss can take, each process its share, in a fixed order.

        with_audio: whether a teacher listens to their audio; in training none does.
        """
        from_audio, cuts = self.config.on_the_fly_feats, []
        usable = Selection(self.tokenizer, Rules(0.0, math.inf, from_audio))
        ids = DistinctIds("validation cuts")
        for path in self.paths("dev"):
            for cut, is_taken in usable.judge(iterate(read_manifest(path))):
                check_data(cut, from_audio, path)
                ids.add(cut.id)
                check_text(cut, path)
                if is_taken:
                    check_readable(cut, from_audio, path)
                    cuts.append(cut)
            self._check_filter_bank(path)
        usable.log("validation")
        if not cuts:
            raise UserError("no validation cut is left", fix="look at --dev-parts or --valid-cuts and their texts")
        way_out = "take it out of the validation cuts"
        return self.in_order(cuts, from_audio, world_size, rank, way_out=way_out, with_audio=with_audio)

    def test_dataloaders(self, chunk: ChunkConfig | None = None) -> dict[str, BatchLoader]:
        """By test set: batches in a fixed order, from audio where there is any; `in_order` tells of the chunk.

        Stored features are compressed with a loss; from audio, whole-utterance and chunk-by-chunk
        decoding see the same ones.
        """
        sets = self.test_sets().items()
        return {name: self.in_order(utterances.cuts, from_audio=True, chunk=chunk) for name, utterances in sets}

    def test_sets(self) -> dict[str, Utterances]:
        """By test set: its utterances, with the features that `test_dataloaders` gives them.

        The log warns of letters that the tokenizer lacks.
        """
        if self._test is None:
            self._test = self._read_test_sets()
            for name, utterances in self._test.items():
                unknown = UnknownLetters(self.tokenizer)
                ids = DistinctIds(f"test set {name}")
                for cut in utterances.cuts:
                    ids.add(cut.id)
                    unknown.add(text_of(cut))
                unknown.warn(f"test set {name}")
        return self._test

    def _read_test_sets(self) -> dict[str, Utterances]:
        paths = self.paths("test")
        names = names_of(paths)
        sets = {
            name: Utterances(read_manifest(path), self.config.feature_extractor)
            for name, path in zip(names, paths, strict=True)
        }
        for path, (name, utterances) in zip(paths, sets.items(), strict=True):
            for cut in utterances.cuts:
                if not text_of(cut):
                    raise UserError(
                        f"test set {name}: cut {cut.id} has an empty transcript", fix="mend it or take it out"
                    )
                check_readable(cut, True, path)
                check_text(cut, path)
        return sets

    def in_order(
        self,
        cuts: Sequence[Cut],
        from_audio: bool,
        world_size: int = 1,
        rank: int = 0,
        chunk: ChunkConfig | None = None,
        way_out: str = STREAM,
        with_audio: bool = False,
    ) -> BatchLoader:
        """Batches of cuts of like length, longest first, without augmentation; see `read_utterance`.

        chunk: that a model hears them in.  Cuts too long for full context, or unlimited left context, are refused now.
        way_out: as `check_length` has it.
        """
        if chunk is None or not chunk.is_limited:
            for cut in cuts:
                check_length(f"cut {cut.id}", cut.duration, self.config.max_duration, way_out)
        ordered = sorted(cuts, key=lambda cut: (-cut.duration, cut.id))
        sampler = DynamicCutSampler(ordered, max_duration=self.config.max_duration, world_size=1, rank=0)
        with warnings.catch_warnings():  # of a cut that is longer than a batch, and is one of its own
            warnings.filterwarnings("ignore", message="We have exceeded the max_duration")
            batches = list(sampler)[rank::world_size]
        dataset = AsrDataset(from_audio, self.config.feature_extractor, with_audio=with_audio, tokenizer=self.tokenizer)
        return BatchLoader(dataset, batches, len(batches), self.config.num_workers, pin_memory=self.pin_memory)

    def paths(self, kind: str) -> list[Path]:
        """Manifests of kind "train", "dev" or "test": those given by file, else the parts under --manifest-dir."""
        given = {"train": self.config.train_cuts, "dev": self.config.valid_cuts, "test": self.config.test_cuts}[kind]
        parts = {"train": self.config.train_parts, "dev": self.config.dev_parts, "test": self.config.test_parts}[kind]
        if given:
            return [Path(path) for path in given]
        return [find_part(Path(self.config.manifest_dir), part) for part in parts]

    def _shard_training_cuts(self) -> ShardedCuts | None:
        """The training cuts where all are in shards; None where they are not, or where they are mixed by numbers."""
        config, paths = self.config, self.paths("train")
        shards = {path: find_shards(path) for path in paths}
        if not all(shards.values()) or config.mux_weights or config.pseudo_cuts or config.unlabelled_cuts:
            return None
        rules = Rules(config.min_utterance_seconds, config.max_utterance_seconds, config.on_the_fly_feats)
        cuts = ShardedCuts([*chain(*shards.values())], self.tokenizer, rules, config.max_duration)
        if not config.on_the_fly_feats:
            cuts.check_filter_bank()
        return cuts

    def _select_training_cuts(self) -> TrainingCuts:
        """Looks at every training cut, unless this was done before (see `select`); reads no audio and no features."""
        config, mixture, beside = self.config, None, []
        if config.mux_weights:
            mixture = mix(self.paths("train"), config.mux_weights, self.seed, self._select)
            cuts, count, seconds = mixture.all_cuts(), mixture.num_cuts, mixture.seconds
        else:
            cuts, usable = self._select("training", self.paths("train"), needs_text=False if self.with_texts else None)
            count, seconds = usable.kept, usable.seconds
        for kind in ("pseudo", "unlabelled"):
            if paths := getattr(config, f"{kind}_cuts"):
                others = count + sum(cuts.per_epoch for cuts in beside)
                of_kind, mean_seconds = self._select_beside(kind, [Path(path) for path in paths], others)
                beside.append(of_kind)
                seconds += of_kind.per_epoch * mean_seconds
        return TrainingCuts(cuts, mixture, beside, seconds)

    def _select_beside(self, kind: str, paths: list[Path], others: int) -> tuple[CutsBeside, float]:
        """The cuts that are mixed into `others` of an epoch, pseudo-labelled or unlabelled, and their mean seconds."""
        setting = f"{kind}_ratio"
        ratio = getattr(self.config, setting)
        if not 0 < ratio < 1:
            raise UserError(
                "must lie between 0 and 1, e.g. 0.5",
                flag=option(setting, f"{ratio:g}"),
                fix=f"or leave out {option(f'{kind}_cuts')}",
            )
        pseudo = kind == "pseudo"
        cuts, usable = self._select("pseudo-labelled" if pseudo else kind, paths, needs_text=True if pseudo else None)
        return CutsBeside(cuts, usable.kept, others, ratio, self.seed, kind), usable.seconds / usable.kept

    def _select(self, what: str, paths: Sequence[Path], needs_text: bool | None = False) -> tuple[CutSet, Selection]:
        """The cuts of all manifests that can be trained on, in one stream that is the same at each reading."""
        config = self.config
        rules = Rules(config.min_utterance_seconds, config.max_utterance_seconds, config.on_the_fly_feats, needs_text)
        usable = Selection(self.tokenizer, rules)
        parts: list[tuple[CutSet, float]] = []
        for path in paths:
            selection, numbers = select(path, self.tokenizer, rules, f"{path}: {self._training_ids.what}")
            manifest = read_manifest(path, bool(needs_text), trusted=True)
            if needs_text is None:
                manifest = manifest.map(without_text)
            try:
                self._training_ids.add_all(numbers, (cut.id for cut in iterate(manifest)))
            except UserError as error:
                flag = [flag for flag, other in self._training_manifests() if other == path][-1]  # the last one read
                raise UserError(f"{path}: {error.problem}", flag=flag, fix=error.fix) from error
            longest, seconds = selection.longest
            check_length(f"{path}: cut {longest}", seconds, config.max_duration, SHORTER)
            self._check_filter_bank(path)
            usable.add(selection)
            if selection.kept:
                parts.append((manifest, selection.seconds))
        usable.log(what)
        if not parts:
            raise UserError(
                f"no {what} cut is left", fix="look at --min-utterance-seconds, --max-utterance-seconds, texts"
            )
        cuts = parts[0][0]
        if len(parts) > 1:  # by weight, so that a window of the stream holds all of them
            cuts = CutSet.mux(*(part for part, _ in parts), weights=[total for _, total in parts], seed=self.seed)
        return usable.kept_of(cuts), usable

    def _check_filter_bank(self, path: Path) -> None:
        if not self.config.on_the_fly_feats:
            check_filter_bank(islice(iterate(read_manifest(path, trusted=True)), LOOKED_AT), path)


@dataclass
class TrainingCuts:
    """Labelled cuts, those that are mixed into them, and the seconds of an epoch (about).

    labelled: all of them; an epoch takes what `mixture` says, if there is one.
    beside: the pseudo-labelled and the unlabelled ones, where there are any.
    """

    labelled: CutSet
    mixture: Mixture | None
    beside: list[CutsBeside]
    seconds: float

    @property
    def kinds(self) -> list[CutSet]:
        """All labelled cuts, all pseudo-labelled ones, all unlabelled ones."""
        return [self.labelled, *(beside.cuts for beside in self.beside)]

    def of_epoch(self, epoch: int) -> CutSet:
        cuts = self.labelled if self.mixture is None else self.mixture.of_epoch(epoch)
        for beside in self.beside:
            cuts = beside.mixed_into(cuts, epoch)
        return cuts

    def windows(self, epoch: int, order: Epoch, first: int) -> Iterator[tuple[int, Iterator[Cut]]]:
        """See `sampler.Windows`.  Windows before the first are read, but no batch is made of them."""
        rng = random.Random(order.seed_of("windows", ""))
        for number, window in enumerate(windows_of(iterate(self.of_epoch(epoch)), rng)):
            if number >= first:
                yield number, window
            else:
                deque(window, maxlen=0)


def find_part(manifest_dir: Path, part: str) -> Path:
    """The manifest CORPUS_cuts_PART.jsonl.gz, whatever the corpus.

    Where none is there, it is LibriSpeech's, so that whoever reads it says so.
    Raises:
      UserError: there are several.
    """
    found = sorted(manifest_dir.glob(cuts_name(escape(part), corpus="*")))
    if len(found) > 1:
        raise UserError(
            f"{manifest_dir}: has part {part} of {len(found)} corpora: {', '.join(path.name for path in found)}",
            flag="--*-parts",
            fix="name manifests with --train-cuts, --valid-cuts and --test-cuts",
        )
    return found[0] if found else manifest_dir / cuts_name(part)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Names of the test sets: aishell_cuts_test.jsonl.gz is aishell-test, and librispeech_cuts_test-clean.jsonl.gz is
    test-clean: LibriSpeech's parts have names that no other corpus has.

    Before a name that several have stand the folders that tell them apart: a/data/test.jsonl.gz and
    b/data/test.jsonl.gz are a-test and b-test.
    Raises:
      UserError: one manifest is given twice.
    """
    names = list(map(_name_of, paths))
    folders = [path.absolute().parent.parts for path in paths]
    for name in set(names):
        alike = [index for index, other in enumerate(names) if other == name]
        if len(alike) > 1:
            common = set.intersection(*(set(folders[index]) for index in alike))
            for index in alike:
                names[index] = "-".join([*(part for part in folders[index] if part not in common), name])
    if len(set(names)) < len(names):
        shown = ", ".join(map(str, paths))
        raise UserError(
            f"two test sets are named alike ({shown})",
            flag="--test-parts, --test-cuts",
            fix="rename one, or leave it out",
        )
    return names


def _name_of(path: Path) -> str:
    name = path.name.split(".json")[0].split(".yaml")[0]
    corpus, cuts, part = name.partition("_cuts_")
    return name if not cuts else part if corpus == LIBRISPEECH else f"{corpus}-{part}"

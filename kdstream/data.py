"""From Lhotse cuts to batches of features.

Here lives the only Fbank of the project: prepare.sh, training, decoding, export checks and live
transcription all use it, so features cannot differ between them.

What makes a batch depends on (seed, epoch, position in the epoch) alone: the sampler runs in the
training process, and augmentation draws from a generator seeded by (seed, epoch, cut id).  So the
number of data loading processes, the number of training processes and a resume in mid-epoch change
neither the order of the batches nor their content.

Shapes: N batch, T feature frames of 10 ms, 80 mel bins.
"""

from __future__ import annotations

import functools
import math
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
import torch
from lhotse import CutSet, Fbank, FbankConfig, KaldifeatFbank, KaldifeatFbankConfig
from lhotse.audio.utils import AudioLoadingError, DurationMismatchError
from lhotse.cut import Cut, MixedCut
from lhotse.dataset import CutMix, DynamicBucketingSampler, DynamicCutSampler, SpecAugment
from lhotse.features.kaldifeat import KaldifeatFrameOptions, KaldifeatMelOptions
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from kdstream.batch import Batch
from kdstream.config import DataConfig, UserError
from kdstream.cuts import PseudoCuts, Selection, read_manifest, text_of
from kdstream.models.streaming import LOG_EPS, SHORTEST

SAMPLE_RATE = 16000
FBANK = Fbank(FbankConfig(num_filters=80, dither=0.0, snip_edges=False, low_freq=20.0, high_freq=-400.0))
MUSAN_CUTS = "musan_cuts.jsonl.gz"
WORD_START = "\u2581"  # how sentencepiece marks a piece that begins a word
READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, AssertionError, AudioLoadingError, DurationMismatchError)


def compute_fbank(samples: np.ndarray | Tensor, extractor: str = "lhotse") -> Tensor:
    """Log mel energies of 16 kHz audio.

    Args:
      samples: (S,) in [-1, 1].
      extractor: a --feature-extractor; the two differ by less than 1e-3.
    Returns:
      (T, 80) float32, T = S / 160 rounded to the nearest.
    Raises:
      UserError: kaldifeat is asked for and not installed.
    """
    fbank = kaldifeat_fbank() if extractor == "kaldifeat" else FBANK
    return torch.as_tensor(fbank.extract(torch.as_tensor(samples, dtype=torch.float32), SAMPLE_RATE))


@functools.cache
def kaldifeat_fbank() -> KaldifeatFbank:
    """FBANK's settings, computed by kaldifeat."""
    try:
        import kaldifeat  # noqa: F401  Lhotse imports it only when it computes
    except (ImportError, OSError) as error:
        raise UserError(
            f"--feature-extractor kaldifeat: it does not import ({error}); build it with local/setup_env.sh "
            "--kaldifeat, or leave the flag out"
        ) from error
    ours = FBANK.config
    frames = KaldifeatFrameOptions(dither=ours.dither, snip_edges=ours.snip_edges)
    bins = KaldifeatMelOptions(num_bins=ours.num_filters, low_freq=ours.low_freq, high_freq=ours.high_freq)
    return KaldifeatFbank(KaldifeatFbankConfig(frame_opts=frames, mel_opts=bins))


class Tokenizer:
    """A sentencepiece model with icefall's ids: <blk> 0, <sos/eos> 1, <unk> 2."""

    def __init__(self, bpe_model: str | Path) -> None:
        if not Path(bpe_model).is_file():
            raise UserError(f"{bpe_model}: no such file; run prepare.sh stage 5 or give --bpe-model")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(bpe_model))
        except RuntimeError as error:
            raise UserError(f"{bpe_model}: not a sentencepiece model; delete it and run prepare.sh again") from error
        self.unk_id: int = self._model.unk_id()

    @property
    def vocab_size(self) -> int:
        return self._model.get_piece_size()

    @property
    def tokens(self) -> list[str]:
        """All pieces, in the order of their ids."""
        return [self._model.id_to_piece(i) for i in range(self.vocab_size)]

    def save_tokens(self, path: Path) -> None:
        """Writes tokens.txt: "piece id" a line, in the order of the ids."""
        lines = [f"{piece} {index}\n" for index, piece in enumerate(self.tokens)]
        path.write_text("".join(lines), encoding="utf-8")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode(list(texts), out_type=int)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids])

    def word_ends(self, ids: Sequence[int]) -> list[int]:
        """Of each word that `ids` decode to, the place among them of the token that completes it."""
        words = self.decode(ids).split()
        ends: list[int] = []
        for place in range(len(ids)):
            said = self.decode(ids[: place + 1]).split()
            while len(ends) < len(said) and said[len(ends)] == words[len(ends)]:
                ends.append(place)
        return ends


class Utterance(NamedTuple):
    """One cut, read: `features` (T, 80), and `audio` (S,) where it is asked for."""

    cut_id: str
    text: str
    features: Tensor
    audio: Tensor | None = None


def read_noise(manifest_dir: Path) -> list[Cut]:
    """MUSAN's cuts.  Raises UserError where prepare.sh has not made them."""
    path = manifest_dir / MUSAN_CUTS
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; run prepare.sh --musan true, or give --enable-musan 0")
    return list(read_manifest(path))


def make_batch(utterances: Sequence[Utterance]) -> Batch:
    """Pads utterances to the longest of them."""
    batch = Batch(
        pad_sequence([u.features for u in utterances], batch_first=True, padding_value=LOG_EPS),
        torch.tensor([len(u.features) for u in utterances], dtype=torch.int64),
        [u.text for u in utterances],
        [u.cut_id for u in utterances],
    )
    audio = [u.audio for u in utterances if u.audio is not None]
    if audio:
        batch.audio = pad_sequence(audio, batch_first=True)
        batch.audio_lens = torch.tensor([len(samples) for samples in audio], dtype=torch.int64)
    return batch


def read_audio(cut: Cut) -> Tensor:
    """The cut's samples (S,) at 16 kHz.  Raises UserError where the file is missing, cut short or not mono."""
    path = "a mix" if isinstance(cut, MixedCut) else cut.recording.sources[0].source

    def load() -> np.ndarray:
        return (cut if cut.sampling_rate == SAMPLE_RATE else cut.resample(SAMPLE_RATE)).load_audio()

    samples = load_samples(load, path, f"restore the audio of cut {cut.id} or take the cut out")
    if samples.shape[0] != 1:
        raise UserError(f"{path}: {samples.shape[0]} channels; make cut {cut.id} mono, e.g. with cut.to_mono()")
    return torch.from_numpy(samples[0])


def load_samples(load: Callable[[], np.ndarray], path: str | Path, fix: str) -> np.ndarray:
    """Samples (channels, S) as `load` gives them.  Raises UserError, with `path` and `fix`, where they are no good."""
    try:
        samples = load()
    except READ_ERRORS as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "cut short or damaged"
        raise UserError(f"{path}: {reason}; {fix}") from error
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: samples are NaN or infinite; {fix}")
    return samples


def read_utterance(cut: Cut, from_audio: bool, extractor: str = "lhotse") -> Utterance:
    """Reads a cut's stored features, or computes them from its audio (always so if none are stored).

    Raises UserError, naming the cut, for whatever cannot be trained on or decoded.
    """
    if len(cut.supervisions) > 1:
        raise UserError(f"cut {cut.id}: {len(cut.supervisions)} supervisions; use cuts.trim_to_supervisions() first")
    if cut.has_recording and (from_audio or not cut.has_features):
        features = compute_fbank(read_audio(cut), extractor)
    else:
        features = _read_features(cut)
    if not torch.isfinite(features).all():
        raise UserError(f"cut {cut.id}: features hold NaN or infinity; mend its audio or take the cut out")
    if len(features) < SHORTEST:
        raise UserError(f"cut {cut.id}: only {len(features)} frames (10 ms each); take the cut out")
    return Utterance(cut.id, text_of(cut), features)


def _read_features(cut: Cut) -> Tensor:
    path = "a mix" if isinstance(cut, MixedCut) else cut.features.storage_path if cut.has_features else "no features"
    try:
        features = cut.load_features()
        assert features is not None
        return torch.from_numpy(features)
    except READ_ERRORS as error:
        fix = "delete its manifest and run prepare.sh again, or use --on-the-fly-feats 1"
        raise UserError(f"{path}: cannot read the features of cut {cut.id}; {fix}") from error


def _seed_of(*parts: object) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the generators that SpecAugment draws from, and puts them back: the model's dropout must not notice."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class Augmentation:
    """Noise and SpecAugment, as icefall sets them, drawn anew for each (seed, epoch, cut id)."""

    def __init__(self, config: DataConfig, seed: int, epoch: int, noise: Sequence[Cut] = ()) -> None:
        self.seed, self.epoch, self.noise = seed, epoch, noise
        self.spec_augment: SpecAugment | None = None
        if config.enable_spec_aug:
            self.spec_augment = SpecAugment(
                time_warp_factor=config.spec_aug_time_warp_factor,
                num_feature_masks=2,
                features_mask_size=27,
                num_frame_masks=10,
                frames_mask_size=100,
                max_frames_mask_fraction=0.15,
            )

    def mix_noise(self, cut: Cut) -> Cut:
        """Adds noise at 10 to 20 dB to every second cut, over its whole length."""
        if not self.noise:
            return cut
        rng = random.Random(_seed_of("noise", self.seed, self.epoch, cut.id))
        few = CutSet.from_cuts(rng.sample(self.noise, min(4, len(self.noise))))
        mix = CutMix(few, snr=(10, 20), p=0.5, pad_to_longest=True, preserve_id=True, seed=rng)
        return next(iter(mix(CutSet.from_cuts([cut]))))

    def mask(self, utterance: Utterance) -> Utterance:
        """SpecAugment on one utterance, before padding."""
        if self.spec_augment is None:
            return utterance
        with _seeded(_seed_of("spec", self.seed, self.epoch, utterance.cut_id)):
            features = self.spec_augment(utterance.features.unsqueeze(0)).squeeze(0)
        return utterance._replace(features=features)


class AsrDataset(Dataset):
    """Maps the cuts of one batch to a `Batch`, or to the UserError that reading them met.

    The error travels as a value because a DataLoader would wrap an exception raised in its worker
    in a traceback; `BatchLoader` raises it.
    """

    def __init__(
        self,
        from_audio: bool,
        extractor: str,
        augmentation: Augmentation | None = None,
        with_audio: bool = False,
    ) -> None:
        self.from_audio = from_audio
        self.extractor = extractor
        self.augmentation = augmentation
        self.with_audio = with_audio

    def __getitem__(self, cuts: Iterable[Cut]) -> Batch | UserError:
        try:
            return make_batch([self._read(cut) for cut in cuts])
        except UserError as error:
            return error

    def _read(self, cut: Cut) -> Utterance:
        if self.augmentation is None:
            utterance = read_utterance(cut, self.from_audio, self.extractor)
        else:
            cut = self.augmentation.mix_noise(cut)
            utterance = self.augmentation.mask(read_utterance(cut, self.from_audio, self.extractor))
        return utterance._replace(audio=read_audio(cut)) if self.with_audio else utterance


class BatchLoader:
    """Iterates over the `Batch`es of one epoch.  `num_batches` is how many (about, in training)."""

    def __init__(
        self,
        dataset: AsrDataset,
        cut_batches: Iterable[CutSet],
        num_batches: int,
        num_workers: int,
        start_batch: int = 0,
    ) -> None:
        self.dataset = dataset
        self.cut_batches = cut_batches
        self.num_batches = num_batches
        self.num_workers = num_workers
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[Batch]:
        remaining = islice(self.cut_batches, self.start_batch, None)
        loader = DataLoader(
            self.dataset,
            sampler=_Once(remaining),
            batch_size=None,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # else starting to iterate would draw from the model's generator
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Once:
    """An iterator dressed as what DataLoader takes for a sampler."""

    def __init__(self, iterator: Iterator[CutSet]) -> None:
        self.iterator = iterator

    def __iter__(self) -> Iterator[CutSet]:
        return self.iterator


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
    Raises:
      UserError: (here or while iterating) naming the manifest, file or cut at fault, and the fix.
    """

    def __init__(self, config: DataConfig, seed: int, with_audio: bool = False) -> None:
        self.config, self.seed, self.with_audio = config, seed, with_audio
        self.tokenizer = Tokenizer(config.bpe_model)
        self._train: _TrainingCuts | None = None

    def train_dataloader(self, epoch: int, world_size: int = 1, rank: int = 0, start_batch: int = 0) -> BatchLoader:
        """Batches of one epoch for process `rank` of `world_size`, which takes every world_size-th of them.

        `start_batch` leaves out the first batches (of this process) unread: a resumed epoch goes on
        exactly where the interrupted one stopped.
        """
        if self._train is None:
            self._train = self._select_training_cuts()
        config, train = self.config, self._train
        sampler = DynamicBucketingSampler(
            train.of_epoch(epoch),
            max_duration=config.max_duration,
            num_buckets=train.num_buckets,
            duration_bins=None if train.num_buckets > 1 else [config.max_utterance_seconds],
            shuffle=config.shuffle,
            world_size=1,  # its own division would make the order of the batches depend on their number
            rank=0,
            seed=self.seed,
        )
        sampler.set_epoch(epoch)
        noise = read_noise(Path(config.manifest_dir)) if config.enable_musan else ()
        augmentation = Augmentation(config, self.seed, epoch, noise)
        dataset = AsrDataset(config.on_the_fly_feats, config.feature_extractor, augmentation, self.with_audio)
        num_batches = math.ceil(train.seconds / config.max_duration / world_size)
        return BatchLoader(dataset, _Share(sampler, world_size, rank), num_batches, config.num_workers, start_batch)

    def training_cut_ids(self) -> Iterator[str]:
        """Of all cuts that an epoch may take."""
        if self._train is None:
            self._train = self._select_training_cuts()
        for cuts in (self._train.labelled, self._train.pseudo.cuts if self._train.pseudo else ()):
            yield from (cut.id for cut in cuts)

    def valid_dataloader(self, world_size: int = 1, rank: int = 0) -> BatchLoader:
        """All validation cuts that the loss can take, each process its share, in a fixed order."""
        usable = Selection(self.tokenizer, 0.0, math.inf)
        cuts = [cut for path in self.paths("dev") for cut in read_manifest(path) if usable(cut)]
        usable.log("validation")
        if not cuts:
            raise UserError("no validation cut is left; look at --dev-parts or --valid-cuts and their texts")
        return self.in_order(cuts, self.config.on_the_fly_feats, world_size, rank)

    def test_dataloaders(self) -> dict[str, BatchLoader]:
        """By test set: batches in a fixed order, from audio where there is any.

        Stored features are compressed with a loss; from audio, whole-utterance and chunk-by-chunk
        decoding see the same ones.
        """
        return {name: self.in_order(utterances.cuts, from_audio=True) for name, utterances in self.test_sets().items()}

    def test_sets(self) -> dict[str, Utterances]:
        """By test set: its utterances, with the features that `test_dataloaders` gives them."""
        paths = self.paths("test")
        sets = {_name_of(path): Utterances(read_manifest(path), self.config.feature_extractor) for path in paths}
        if len(sets) < len(paths):
            raise UserError(f"--test-cuts: two manifests are named alike ({', '.join(map(str, paths))}); rename one")
        for name, utterances in sets.items():
            if not utterances:
                raise UserError(f"test set {name}: holds no cuts; look at --test-parts or --test-cuts")
            for cut in utterances.cuts:
                if not text_of(cut):
                    raise UserError(f"test set {name}: cut {cut.id} has an empty transcript; mend it or take it out")
        return sets

    def in_order(self, cuts: Sequence[Cut], from_audio: bool, world_size: int = 1, rank: int = 0) -> BatchLoader:
        """Batches of cuts of like length, longest first, without augmentation; see `read_utterance`."""
        ordered = sorted(cuts, key=lambda cut: (-cut.duration, cut.id))
        sampler = DynamicCutSampler(ordered, max_duration=self.config.max_duration, world_size=1, rank=0)
        batches = list(sampler)[rank::world_size]
        dataset = AsrDataset(from_audio, self.config.feature_extractor, with_audio=self.with_audio)
        return BatchLoader(dataset, batches, len(batches), self.config.num_workers)

    def paths(self, kind: str) -> list[Path]:
        """Manifests of kind "train", "dev" or "test": those given by file, else the parts under --manifest-dir."""
        given = {"train": self.config.train_cuts, "dev": self.config.valid_cuts, "test": self.config.test_cuts}[kind]
        parts = {"train": self.config.train_parts, "dev": self.config.dev_parts, "test": self.config.test_parts}[kind]
        if given:
            return [Path(path) for path in given]
        return [Path(self.config.manifest_dir) / f"librispeech_cuts_{part}.jsonl.gz" for part in parts]

    def _select_training_cuts(self) -> _TrainingCuts:
        """Looks once at every training cut; reads no audio and no features."""
        config = self.config
        cuts, usable = self._select("training", [read_manifest(path) for path in self.paths("train")])
        count, seconds, pseudo = usable.kept, usable.seconds, None
        if config.pseudo_cuts:
            pseudo, mean_seconds = self._select_pseudo_cuts(usable.kept)
            count, seconds = count + pseudo.per_epoch, seconds + pseudo.per_epoch * mean_seconds
        # Each bucket leaves an incomplete batch behind: with fewer than four full ones that is a poor bargain.
        buckets = min(config.num_buckets, int(seconds / config.max_duration / 4), count)
        return _TrainingCuts(cuts, pseudo, seconds, buckets)

    def _select_pseudo_cuts(self, num_labelled: int) -> tuple[PseudoCuts, float]:
        """The pseudo-labelled cuts, and their mean duration in seconds."""
        ratio = self.config.pseudo_ratio
        if not 0 < ratio < 1:
            raise UserError(f"--pseudo-ratio {ratio:g}: must lie between 0 and 1, e.g. 0.5; or leave out --pseudo-cuts")
        manifests = [read_manifest(Path(path), needs_text=True) for path in self.config.pseudo_cuts]
        cuts, usable = self._select("pseudo-labelled", manifests)
        return PseudoCuts(cuts, usable.kept, num_labelled, ratio, self.seed), usable.seconds / usable.kept

    def _select(self, what: str, manifests: Sequence[CutSet]) -> tuple[CutSet, Selection]:
        """The cuts of all manifests that can be trained on, in one stream that is the same at each reading."""
        usable = Selection(self.tokenizer, self.config.min_utterance_seconds, self.config.max_utterance_seconds)
        seconds = [sum(cut.duration for cut in manifest if usable(cut)) for manifest in manifests]
        usable.log(what)
        if not usable.kept:
            raise UserError(f"no {what} cut is left; look at --min-utterance-seconds, --max-utterance-seconds, texts")
        kept = [manifest for manifest, total in zip(manifests, seconds, strict=True) if total > 0]
        cuts = kept[0]
        if len(kept) > 1:  # by weight, so that a window of the stream holds all of them
            cuts = CutSet.mux(*kept, weights=[total for total in seconds if total > 0], seed=self.seed)
        return cuts.filter(usable.was_kept), usable


class _Share:
    """Every world_size-th batch, from the rank-th on.

    All processes get equally many: what is left over in the end is divided among them cut by cut (and
    is dropped if there are fewer cuts than processes).
    """

    def __init__(self, batches: Iterable[CutSet], world_size: int, rank: int) -> None:
        self.batches, self.world_size, self.rank = batches, world_size, rank

    def __iter__(self) -> Iterator[CutSet]:
        stream = (batch for batch in self.batches)  # islice would restart one of Lhotse's samplers at each call
        while group := list(islice(stream, self.world_size)):
            if len(group) == self.world_size:
                yield group[self.rank]
                continue
            cuts = [cut for batch in group for cut in batch]
            if len(cuts) >= self.world_size:
                yield CutSet.from_cuts(cuts[self.rank :: self.world_size])


@dataclass
class _TrainingCuts:
    """Labelled and perhaps pseudo-labelled cuts; the seconds of an epoch (about), and the buckets that suit it."""

    labelled: CutSet
    pseudo: PseudoCuts | None
    seconds: float
    num_buckets: int

    def of_epoch(self, epoch: int) -> CutSet:
        return self.labelled if self.pseudo is None else self.pseudo.mixed_into(self.labelled, epoch)


def _name_of(path: Path) -> str:
    """librispeech_cuts_test-clean.jsonl.gz -> test-clean"""
    name = path.name.split(".json")[0]
    return name[len("librispeech_cuts_") :] if name.startswith("librispeech_cuts_") else name

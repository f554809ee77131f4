"""The transducer: front end and encoder, stateless predictor, joiner, and the heads that training adds.

Parameter names are icefall's.  Shapes: N batch, T output frames (40 ms), U symbols, V vocabulary, D width.
"""

from __future__ import annotations

from typing import NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.config.sections import ModelConfig
from kdstream.models.encoders import ENCODERS
from kdstream.models.linear import scaled_linear
from kdstream.models.on_cpu import one_column
from kdstream.models.rnnt_in_groups import can_be_grouped, losses_in_groups
from kdstream.models.rnnt_loss import LossSettings, RnntLosses, do_rnnt_pruning, transducer_losses
from kdstream.models.scaling import Balancer, ScheduledFloat
from kdstream.models.streaming import ChunkConfig, EncoderState, TapRecorder, followed_by_silence, output_lens
from kdstream.models.subsampling import Conv2dSubsampling


class Tokens(NamedTuple):
    """What is said in a batch: ids (N, U) int64 without blanks, but padded with blank, and their numbers (N,).

    known: (N,) bool, on the CPU: the others are a guess, or missing, and have no transducer loss.  None: all are known.
    """

    ids: Tensor
    lens: Tensor
    known: Tensor | None = None


class Predictor(nn.Module):
    """Stateless predictor: the embeddings of the last `context_size` symbols through a grouped convolution."""

    def __init__(self, vocab_size: int, dim: int, context_size: int) -> None:
        super().__init__()
        self.context_size = context_size
        self.embedding = nn.Embedding(vocab_size, dim)
        self.balancer = Balancer(0.0, 1.0, 0.5, 1.0, prob=0.05)  # a drift in size would harm model averaging
        if context_size > 1:
            self.conv = nn.Conv1d(dim, dim, context_size, groups=dim // 4, bias=False)
            self.balancer2 = Balancer(0.0, 1.0, 0.5, 1.0, prob=0.05)

    def forward(self, tokens: Tensor, need_pad: bool = True) -> Tensor:
        """
        Args:
          tokens: (N, U) int64; negative ids embed as zero, as before the first symbol.
          need_pad: True: context before the first column is zero, and the result has U columns.
            False: U is context_size, and the result has one column.
        Returns:
          (N, U or 1, D).
        """
        x = self.embedding(tokens.clamp(min=0)) * (tokens >= 0).unsqueeze(2)
        x = self.balancer(x)
        if self.context_size == 1:
            return x
        if need_pad:
            x = self.conv(F.pad(x.transpose(1, 2), (self.context_size - 1, 0))).transpose(1, 2)
        else:
            x = one_column(x, self.conv)
        return self.balancer2(x.relu())


class Joiner(nn.Module):
    """Adds projected encoder and predictor outputs and maps them to symbol scores."""

    def __init__(self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_proj = scaled_linear(encoder_dim, joiner_dim, 0.25)
        self.decoder_proj = scaled_linear(decoder_dim, joiner_dim, 0.25)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True) -> Tensor:
        """(..., D) and (..., D') that broadcast against each other to logits (..., V)."""
        if project_input:
            encoder_out, decoder_out = self.encoder_proj(encoder_out), self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))


class Transducer(nn.Module):
    """A whole recogniser.

    Args:
      config: resolved by `presets.resolve`, with vocab_size set.

    unk_id: the token of its tokenizer that searches take for blank; None before it has got one.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.unk_id: int | None = None
        encoder = ENCODERS.find(config.encoder).encoder
        self.encoder_embed = Conv2dSubsampling(
            config.feature_dim,
            encoder.input_dim(config),
            config.frontend_channels,
            config.frontend_hidden_dim,
            ScheduledFloat((0, 0.3), (20000, 0.1)),
        )
        self.encoder = encoder(config)
        self.max_downsampling = self.encoder.max_downsampling
        encoder_dim = self.encoder.output_dim
        self.decoder = Predictor(config.vocab_size, config.decoder_dim, config.context_size)
        self.joiner = Joiner(encoder_dim, config.decoder_dim, config.joiner_dim, config.vocab_size)
        self.simple_am_proj = scaled_linear(encoder_dim, config.vocab_size, 0.25)
        self.simple_lm_proj = scaled_linear(config.decoder_dim, config.vocab_size, 0.25)
        if config.use_ctc:
            self.ctc_output = nn.Sequential(
                nn.Dropout(0.1), nn.Linear(encoder_dim, config.vocab_size), nn.LogSoftmax(dim=-1)
            )

    @overload
    def encode(
        self,
        features: Tensor,
        feature_lens: Tensor,
        chunk: ChunkConfig | None = None,
        state: None = None,
        taps: TapRecorder | None = None,
    ) -> tuple[Tensor, Tensor, None]: ...

    @overload
    def encode(
        self,
        features: Tensor,
        feature_lens: Tensor,
        chunk: ChunkConfig,
        state: EncoderState,
        taps: TapRecorder | None = None,
    ) -> tuple[Tensor, Tensor, EncoderState]: ...

    def encode(
        self,
        features: Tensor,
        feature_lens: Tensor,
        chunk: ChunkConfig | None = None,
        state: EncoderState | None = None,
        taps: TapRecorder | None = None,
    ) -> tuple[Tensor, Tensor, EncoderState | None]:
        """
        Whole utterances with right context are followed by as much silence, as the last step of a stream is.

        Args:
          features: (N, T, F) in 10 ms frames.  With `state`: exactly chunk.input_frames of them.
          feature_lens: (N,) in feature frames.
          chunk: None for full context; alone, simulated streaming; with `state`, one step of a stream.
          state: as `init_state` or the last step gave it.
          taps: records the layers that it wants.
        Returns:
          (N, T', D) in 40 ms frames, lengths (N,), and the new state (None without `state`).
        Raises:
          UserError: a chunk that does not fit the encoder, or an utterance below 9 frames.
        """
        if state is None:
            out, out_lens, _ = self.encoder(*self.embed(features, feature_lens, chunk), chunk, taps=taps)
            return out, out_lens, None
        right = 0 if chunk is None else chunk.right
        x, x_lens, embed = self.encoder_embed(features, feature_lens, state.embed, right)
        out, out_lens, layers = self.encoder(x, x_lens, chunk, state.layers, state.processed, taps)
        return out, out_lens, EncoderState(layers, embed, state.processed + x.size(1) - right)

    def embed(self, features: Tensor, feature_lens: Tensor, chunk: ChunkConfig | None) -> tuple[Tensor, Tensor]:
        """What the front end makes of whole utterances: (N, T', D), the last chunk's right context too, and (N,)."""
        if chunk is not None and chunk.right:
            features = followed_by_silence(features, feature_lens, features.size(1) + 2 * chunk.right)
        return self.encoder_embed(features, feature_lens)[:2]

    def init_state(self, batch_size: int, chunk: ChunkConfig, device: torch.device | str = "cpu") -> EncoderState:
        """The state of `batch_size` streams that have heard nothing yet."""
        return EncoderState(
            layers=self.encoder.init_caches(batch_size, chunk, device),
            embed=self.encoder_embed.init_state(batch_size, device),
            processed=torch.zeros(batch_size, dtype=torch.int64, device=device),
        )

    def forward(
        self,
        features: Tensor,
        feature_lens: Tensor,
        tokens: Tokens,
        chunk: ChunkConfig | None,
        settings: LossSettings,
        taps: TapRecorder | None = None,
        host_lens: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The training losses of a batch, each summed over the batch.

        Args:
          features, feature_lens, chunk: as in `encode`.
          tokens: of the utterances.
          settings: of the transducer loss.
          taps: record the lattice too.  Where they want full context, the batch is encoded in full context too; front
            end and predictor, in which no frame hears of chunks, run once.
          host_lens: feature_lens and tokens.lens on the CPU, where they are on a GPU: else the host waits for them.
        Returns:
          simple_loss, pruned_loss and, with a CTC head, ctc_loss; those in full context as full_simple_loss and so on.
        """
        x, x_lens = self.embed(features, feature_lens, chunk)
        encoder_out, encoder_lens, _ = self.encoder(x, x_lens, chunk, taps=taps)
        if host_lens is None:
            lens = encoder_lens, tokens.lens
        else:
            lens = output_lens(host_lens[0]), host_lens[1]
            settings = settings.wide_enough(*lens)
        lattice = encoder_lens, self.predict(tokens.ids), tokens, lens
        losses = self.losses(encoder_out, *lattice, settings, taps)
        if taps is not None and taps.wants_full_context:
            right = 0 if chunk is None else chunk.right
            full_context_out, _, _ = self.encoder(x[:, : x.size(1) - right], x_lens)
            taps.record_full_context(full_context_out)
            settings = settings._replace(delay_penalty=0.0)  # nobody waits for a symbol there
            in_full_context = self.losses(full_context_out, *lattice, settings)
            losses.update({f"full_{name}": loss for name, loss in in_full_context.items()})
        return losses

    def losses(
        self,
        encoder_out: Tensor,
        encoder_lens: Tensor,
        decoder_out: Tensor,
        tokens: Tokens,
        lens: tuple[Tensor, Tensor],
        settings: LossSettings,
        taps: TapRecorder | None = None,
    ) -> dict[str, Tensor]:
        """The training losses of what an encoder made of a batch; see `forward`, and `rnnt_losses` for the shapes.

        lens: encoder_lens and tokens.lens, on the CPU if they are known there.
        """
        want_logits = taps is not None and taps.wants_lattice
        rnnt = self.rnnt_losses(encoder_out, encoder_lens, decoder_out, tokens, settings, want_logits)
        if taps is not None and rnnt.logits is not None:
            taps.record_lattice(
                encoder_lens=encoder_lens,
                tokens=tokens.ids,
                token_lens=tokens.lens,
                decoder_out=decoder_out,
                ranges=rnnt.ranges,
                logits=rnnt.logits,
            )
        losses = {"simple_loss": rnnt.simple, "pruned_loss": rnnt.pruned}
        if self.config.use_ctc:
            log_probs = self.ctc_output(encoder_out).float()  # (N, T, V)
            if taps is not None and taps.wants_ctc:
                taps.record_ctc(encoder_lens, log_probs)
            losses["ctc_loss"] = sum_of_known(
                F.ctc_loss(
                    log_probs.transpose(0, 1),
                    tokens.ids,
                    *lens,
                    self.config.blank_id,
                    reduction="sum" if tokens.known is None else "none",
                    zero_infinity=True,
                ),
                tokens.known,
            )
        return losses

    def rnnt_losses(
        self,
        encoder_out: Tensor,
        encoder_lens: Tensor,
        decoder_out: Tensor,
        tokens: Tokens,
        settings: LossSettings,
        want_logits: bool,
    ) -> RnntLosses:
        """The simple and the pruned loss; group by group on a CPU, unless somebody wants to see the logits.

        Args:
          encoder_out, encoder_lens: as `encode` gives them.
          decoder_out: (N, U + 1, D), as `predict` gives it.
          tokens: of the utterances; those that are not known count for nothing.
          want_logits: the joiner's, in the result.
        """
        joiner, lm_simple = self.joiner, self.simple_lm_proj(decoder_out)
        sums = joiner.encoder_proj(encoder_out), joiner.decoder_proj(decoder_out)
        lattice = (tokens.ids, encoder_lens, tokens.lens, settings)
        blank = self.config.blank_id
        watched = any(module._forward_hooks for module in (joiner, joiner.output_linear, self.simple_am_proj))
        if want_logits or watched or not can_be_grouped(encoder_out.device, settings):
            am_simple = self.simple_am_proj(encoder_out)
            reduction = "sum" if tokens.known is None else "none"
            rnnt = transducer_losses(am_simple, lm_simple, *sums, joiner, *lattice, blank_id=blank, reduction=reduction)
            simple, pruned = (sum_of_known(loss, tokens.known) for loss in (rnnt.simple, rnnt.pruned))
            return rnnt._replace(simple=simple, pruned=pruned)
        heads = (self.simple_am_proj, joiner.output_linear)
        rows = (encoder_out, lm_simple, *sums, tokens.ids, encoder_lens, tokens.lens)
        if tokens.known is not None:
            if not tokens.known.any():
                nothing = encoder_out.new_zeros((), dtype=torch.float32)
                return RnntLosses(nothing, nothing, tokens.ids.new_zeros(0, 0, 0), None)
            rows = tuple(x[tokens.known] for x in rows)
        encoder_out, lm_simple, encoder_proj, decoder_proj, ids, encoder_lens, lens = rows
        return losses_in_groups(
            encoder_out,
            lm_simple,
            encoder_proj,
            decoder_proj,
            *heads,
            ids,
            encoder_lens,
            lens,
            settings,
            blank_id=blank,
        )

    def predict(self, tokens: Tensor) -> Tensor:
        """The predictor's output before each of the tokens (N, U) and after the last: (N, U + 1, D)."""
        return self.decoder(F.pad(tokens, (1, 0), value=self.config.blank_id))

    def lattice_logits(self, encoder_out: Tensor, decoder_out: Tensor, ranges: Tensor) -> Tensor:
        """The joiner's logits (N, T, R, V) at the symbols `ranges` (N, T, R) that a pruned loss kept.

        decoder_out: (N, U + 1, D), as `predict` gives it.
        """
        decoder_proj = self.joiner.decoder_proj(decoder_out)
        pair = do_rnnt_pruning(self.joiner.encoder_proj(encoder_out), decoder_proj, ranges)
        return self.joiner(*pair, project_input=False)


def sum_of_known(losses: Tensor, known: Tensor | None) -> Tensor:
    """The sum of losses (N,) over the utterances whose tokens are known; what is a sum already, as it is."""
    return losses if known is None else losses.masked_fill(~known.to(losses.device), 0.0).sum()


def build_model(config: ModelConfig) -> Transducer:
    """A fresh Transducer for a resolved config."""
    return Transducer(config)

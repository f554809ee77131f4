"""The pure-torch pruned transducer loss against a slow reference, torchaudio, and its own definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdstream.errors import UserError
from kdstream.models import rnnt_loss
from kdstream.models.rnnt_lattice import lattice_scores, transition_log_probs

TYPES = ("regular", "modified", "constrained")
N, T, S, V = 4, 12, 5, 9
FRAME_LENS, SYMBOL_LENS = [12, 10, 7, 9], [5, 3, 0, 4]
BOUNDARY = torch.tensor([[0, 0, s, t] for s, t in zip(SYMBOL_LENS, FRAME_LENS, strict=True)])


def random_problem(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """am (N, T, V), lm (N, S+1, V), logits (N, T, S+1, V), symbols (N, S)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((N, T, V), (N, S + 1, V), (N, T, S + 1, V))
    am, lm, logits = (torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes)
    return am, lm, logits, torch.randint(1, V, (N, S), generator=generator)


def reference_loss(log_probs: Tensor, symbols: Tensor, rnnt_type: str, delay_penalty: float, blank: int = 0) -> Tensor:
    """Node by node over one utterance's lattice: log_probs (T, S+1, V), symbols (S,)."""
    frames, rows, _ = log_probs.shape
    impossible = torch.tensor(float("-inf"), dtype=log_probs.dtype)
    node = {(0, 0): log_probs.new_zeros(())}
    for t in range(frames + 1):
        for s in range(rows):
            if (s, t) == (0, 0):
                continue
            ways = []
            if t > 0:
                ways.append(node[s, t - 1] + log_probs[t - 1, s, blank])
            frame = t if rnnt_type == "regular" else t - 1
            if s > 0 and 0 <= frame < frames:
                way = node[s - 1, frame] + log_probs[frame, s - 1, symbols[s - 1]]
                way = way + delay_penalty * ((frames - 1) / 2 - frame)
                if rnnt_type == "constrained":
                    way = way + log_probs[frame, s, blank]
                ways.append(way)
            ways = [way for way in ways if way > impossible]  # their gradients would be nan
            node[s, t] = torch.logsumexp(torch.stack(ways), 0) if ways else impossible
    return -node[rows - 1, frames]


def reference_losses(log_probs: Tensor, symbols: Tensor, rnnt_type: str, delay_penalty: float = 0.0) -> Tensor:
    """log_probs (N, T, S+1, V) -> (N,)."""
    return torch.stack(
        [
            reference_loss(log_probs[n, :t, : s + 1], symbols[n, :s], rnnt_type, delay_penalty)
            for n, (t, s) in enumerate(zip(FRAME_LENS, SYMBOL_LENS, strict=True))
        ]
    )


def assert_equal_with_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor], tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    weights = torch.arange(1.0, ours.numel() + 1, dtype=ours.dtype)
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def prune(am: Tensor, lm: Tensor, symbols: Tensor, rnnt_type: str, s_range: int, boundary: Tensor = BOUNDARY) -> Tensor:
    _, grads = rnnt_loss.rnnt_loss_smoothed(
        lm, am, symbols, 0, boundary=boundary, rnnt_type=rnnt_type, reduction="none", return_grad=True
    )
    return rnnt_loss.get_rnnt_prune_ranges(*grads, boundary, s_range)


@pytest.mark.parametrize("delay_penalty", (0.0, 0.3))
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_pruned_loss_over_every_symbol_equals_the_reference(rnnt_type: str, delay_penalty: float) -> None:
    _, _, logits, symbols = random_problem()
    everything = torch.arange(S + 1).expand(N, T, S + 1)
    ours = rnnt_loss.rnnt_loss_pruned(logits, symbols, everything, 0, BOUNDARY, rnnt_type, delay_penalty, "none")
    theirs = reference_losses(logits.log_softmax(-1), symbols, rnnt_type, delay_penalty)
    assert_equal_with_gradients(ours, theirs, [logits])


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_pruned_loss_equals_the_reference_on_a_lattice_without_the_pruned_nodes(rnnt_type: str) -> None:
    am, lm, logits, symbols = random_problem(1)
    ranges = prune(am, lm, symbols, rnnt_type, 3)
    kept = logits.gather(2, ranges.unsqueeze(3).expand(-1, -1, -1, V))
    ours = rnnt_loss.rnnt_loss_pruned(kept, symbols, ranges, 0, BOUNDARY, rnnt_type, 0.1, "none")
    inside = torch.zeros(N, T, S + 1, dtype=torch.bool).scatter(2, ranges, True)
    pruned = logits.log_softmax(-1).masked_fill(~inside.unsqueeze(3), float("-inf"))
    assert_equal_with_gradients(ours, reference_losses(pruned, symbols, rnnt_type, 0.1), [logits], tolerance=1e-8)


def test_regular_loss_over_every_symbol_equals_torchaudio() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    _, _, logits, symbols = random_problem(2, torch.float32)
    everything = torch.arange(S + 1).expand(N, T, S + 1)
    ours = rnnt_loss.rnnt_loss_pruned(logits, symbols, everything, 0, BOUNDARY, reduction="none")
    theirs = torchaudio.functional.rnnt_loss(
        logits, symbols.int(), BOUNDARY[:, 3].int(), BOUNDARY[:, 2].int(), blank=0, reduction="none"
    )
    assert_equal_with_gradients(ours, theirs, [logits], tolerance=1e-5)


@pytest.mark.parametrize("scales", ((0.0, 0.0), (0.25, 0.0), (0.25, 0.1)))
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_smoothed_loss_equals_the_interpolated_reference(rnnt_type: str, scales: tuple[float, float]) -> None:
    am, lm, _, symbols = random_problem(3)
    lm_only, am_only = scales
    ours = rnnt_loss.rnnt_loss_smoothed(lm, am, symbols, 0, lm_only, am_only, BOUNDARY, rnnt_type, 0.2, "none")
    unigram = lm.softmax(-1).mean((0, 1)).log()
    log_probs = (
        (1 - lm_only - am_only) * (am.unsqueeze(2) + lm.unsqueeze(1)).log_softmax(-1)
        + lm_only * lm.log_softmax(-1).unsqueeze(1)
        + am_only * (am + unigram).log_softmax(-1).unsqueeze(2)
    )
    assert_equal_with_gradients(ours, reference_losses(log_probs, symbols, rnnt_type, 0.2), [am, lm])


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_gradients_pass_gradcheck(rnnt_type: str) -> None:
    generator = torch.Generator().manual_seed(4)
    boundary = torch.tensor([[0, 0, 2, 4], [1, 1, 2, 3]])
    px_frames = 5 if rnnt_type == "regular" else 4
    px = torch.randn(2, 2, px_frames, generator=generator, dtype=torch.float64).requires_grad_()
    py = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: lattice_scores(x, y, boundary)[0], (px, py))

    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    symbols = torch.tensor([[1, 2, 3], [0, 1, 1]])  # one of them blank
    assert torch.autograd.gradcheck(lambda x: transition_log_probs(x, symbols, 0), (logits,))


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_occupation_is_the_gradient_and_every_valid_frame_is_left_once(rnnt_type: str) -> None:
    am, lm, _, symbols = random_problem(5)
    _, (px_grad, py_grad) = rnnt_loss.rnnt_loss_smoothed(
        lm, am, symbols, 0, boundary=BOUNDARY, rnnt_type=rnnt_type, return_grad=True
    )
    moves = py_grad.sum(1) + (0 if rnnt_type == "regular" else px_grad.sum(1))  # (N, T)
    valid = torch.arange(T) < BOUNDARY[:, 3:]
    torch.testing.assert_close(moves, valid.double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(px_grad.sum((1, 2)), BOUNDARY[:, 2].double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_loss_of_an_utterance_does_not_depend_on_padding(rnnt_type: str) -> None:
    am, lm, _, symbols = random_problem(6)
    joiner_weight = torch.randn(V, V, dtype=torch.float64)

    def losses(rows: list[int], frames: int, symbol_count: int) -> rnnt_loss.RnntLosses:
        return rnnt_loss.transducer_losses(
            am[rows, :frames], lm[rows, : symbol_count + 1], am[rows, :frames], lm[rows, : symbol_count + 1],
            lambda encoder, decoder, project_input: torch.tanh(encoder + decoder) @ joiner_weight,
            symbols[rows, :symbol_count], BOUNDARY[rows, 3], BOUNDARY[rows, 2],
            rnnt_loss.LossSettings(prune_range=3, delay_penalty=0.1, rnnt_type=rnnt_type), reduction="none",
        )  # fmt: skip

    together = losses(list(range(N)), T, S)
    for n in (0, 1, 3):  # number 2 has no symbols: alone it has no choice of range
        alone = losses([n], FRAME_LENS[n], SYMBOL_LENS[n])
        torch.testing.assert_close(alone.simple[0], together.simple[n], rtol=1e-12, atol=0)
        torch.testing.assert_close(alone.pruned[0], together.pruned[n], rtol=1e-12, atol=0)
        torch.testing.assert_close(alone.ranges[0], together.ranges[n, : FRAME_LENS[n]])


def test_delay_penalty_moves_emissions_earlier() -> None:
    am, lm, _, symbols = random_problem(7)

    def mean_emission_frame(delay_penalty: float) -> float:
        _, (px_grad, _) = rnnt_loss.rnnt_loss_smoothed(
            lm, am, symbols, 0, boundary=BOUNDARY, delay_penalty=delay_penalty, return_grad=True
        )
        return float((px_grad * torch.arange(T + 1)).sum() / px_grad.sum())

    frames = [mean_emission_frame(penalty) for penalty in (0.0, 0.1, 1.0)]
    assert frames[0] - 0.1 > frames[1] > frames[2] + 0.1


@pytest.mark.parametrize("s_range", (2, 3, 5, 50))
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_ranges_start_at_zero_never_fall_skip_nothing_and_reach_the_end(rnnt_type: str, s_range: int) -> None:
    for seed in range(5):
        am, lm, _, symbols = random_problem(seed)
        ranges = prune(5 * am, 5 * lm, symbols, rnnt_type, s_range)
        kept = ranges.shape[2]
        assert kept == min(s_range, S + 1)
        assert bool((ranges.diff(dim=2) == 1).all())
        first = ranges[:, :, 0]
        assert bool((first[:, 0] == 0).all())
        assert bool(((first.diff(dim=1) >= 0) & (first.diff(dim=1) < kept)).all())
        for n, (frames, count) in enumerate(zip(FRAME_LENS, SYMBOL_LENS, strict=True)):
            assert ranges[n, frames - 1, 0] <= count <= ranges[n, frames - 1, -1]
        assert int(ranges.max()) <= S


def test_range_grows_where_symbols_outnumber_frames() -> None:
    generator = torch.Generator().manual_seed(8)
    am, lm = torch.randn(1, 3, V, generator=generator), torch.randn(1, 13, V, generator=generator)
    symbols = torch.randint(1, V, (1, 12), generator=generator)
    boundary = torch.tensor([[0, 0, 12, 3]])
    ranges = prune(am, lm, symbols, "regular", 2, boundary)
    assert ranges.shape == (1, 3, 5)
    logits = torch.randn(1, 3, 5, V, generator=generator)
    assert torch.isfinite(rnnt_loss.rnnt_loss_pruned(logits, symbols, ranges, 0, boundary))


def test_pruned_loss_is_never_below_the_full_one_and_reaches_it() -> None:
    am, lm, _, symbols = random_problem(9)
    logits = am.unsqueeze(2) + lm.unsqueeze(1)
    losses = []
    for s_range in range(2, S + 2):
        ranges = prune(am, lm, symbols, "regular", s_range)
        kept = logits.gather(2, ranges.unsqueeze(3).expand(-1, -1, -1, V))
        losses.append(rnnt_loss.rnnt_loss_pruned(kept, symbols, ranges, 0, BOUNDARY, reduction="none"))
    full = rnnt_loss.rnnt_loss_smoothed(lm, am, symbols, 0, 0.0, 0.0, BOUNDARY, reduction="none")
    assert all(bool((loss > full - 1e-9).all()) for loss in losses)
    assert bool((losses[0] > full + 0.01).any())
    torch.testing.assert_close(losses[-1], full, rtol=1e-10, atol=0)


def test_an_utterance_without_a_path_is_infinite_and_pulls_at_nothing() -> None:
    _, _, logits, symbols = random_problem(10)
    ranges = torch.arange(2).expand(N, T, 2)  # symbols beyond the second are never reached
    kept = logits[:, :, :2]
    loss = rnnt_loss.rnnt_loss_pruned(kept, symbols, ranges, 0, BOUNDARY, reduction="none")
    assert torch.isinf(loss).tolist() == [count > 1 for count in SYMBOL_LENS]
    (grad,) = torch.autograd.grad(loss[torch.isfinite(loss)].sum(), logits)
    assert bool(torch.isfinite(grad).all())
    assert not bool(grad[0].any()) and bool(grad[2].any())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_losses_are_float32_inside_autocast_and_close_to_float64(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    am, lm, _, symbols = random_problem(11)
    am, lm = am.detach(), lm.detach()

    def losses(am: Tensor, lm: Tensor) -> rnnt_loss.RnntLosses:
        return rnnt_loss.transducer_losses(
            am, lm, am, lm, lambda encoder, decoder, project_input: encoder + decoder,
            symbols.to(am.device), BOUNDARY[:, 3].to(am.device), BOUNDARY[:, 2].to(am.device),
            rnnt_loss.LossSettings(lm_scale=0.0),
        )  # fmt: skip

    exact = losses(am, lm)
    with torch.autocast(device_type=device, dtype=torch.bfloat16):
        ours = losses(am.float().to(device), lm.float().to(device))
    assert ours.simple.dtype == ours.pruned.dtype == torch.float32
    torch.testing.assert_close(ours.simple.cpu().double(), exact.simple, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.pruned.cpu().double(), exact.pruned, rtol=1e-6, atol=0)
    assert torch.equal(ours.ranges.cpu(), exact.ranges)


def test_auto_takes_k2_on_a_gpu_alone_and_what_is_missing_is_one_line(monkeypatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for there in (True, False):
        monkeypatch.setattr(rnnt_loss, "k2_imports", lambda there=there: there)
        assert rnnt_loss.backend("auto", cpu) == rnnt_loss.backend("torch", cuda) == "torch"
        assert rnnt_loss.backend("auto", cuda) == ("k2" if there else "torch")
    with pytest.raises(UserError) as error:
        rnnt_loss.backend("k2", cpu)
    assert str(error.value) == (
        "--rnnt-backend k2: k2 cannot be imported; install it as docs/k2.md says, or give --rnnt-backend torch"
    )


def test_wrong_arguments_are_refused_by_name() -> None:
    am, lm, logits, symbols = random_problem()
    everything = torch.arange(S + 1).expand(N, T, S + 1)
    with pytest.raises(ValueError, match="rnnt_type 'hybrid'"):
        rnnt_loss.rnnt_loss_pruned(logits, symbols, everything, 0, BOUNDARY, "hybrid")
    with pytest.raises(ValueError, match="reduction 'max'"):
        rnnt_loss.rnnt_loss_pruned(logits, symbols, everything, 0, BOUNDARY, reduction="max")
    with pytest.raises(ValueError, match="prune range 1"):
        prune(am, lm, symbols, "regular", 1)
    with pytest.raises(ValueError, match="fewer frames than symbols"):
        short = BOUNDARY.clone()
        short[0, 3] = SYMBOL_LENS[0] - 1
        rnnt_loss.rnnt_loss_pruned(logits, symbols, everything, 0, short, "modified")

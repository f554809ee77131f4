"""Our pruned transducer loss against k2's, and the model's training step through k2.

k2 runs in float64 here: its float32 recursion is itself up to 1.4e-5 from that on these inputs, ours 1e-6.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdstream.models import rnnt_loss
from kdstream.models.streaming import ChunkConfig
from support.models import random_batch, tiny_test_model

pytestmark = pytest.mark.k2

try:
    import k2
except ImportError:
    pytest.skip("needs k2: bash local/setup_env.sh --k2", allow_module_level=True)

TYPES = ("regular", "modified", "constrained")
DTYPES = (torch.float32, torch.float64)
N, T, S, V, J = 6, 60, 14, 40, 24
TOLERANCE = 1e-5  # relative: of a loss to itself, of a gradient to its largest entry


class Problem:
    """Random inputs of the whole loss, the same in every dtype, with utterances of different lengths."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

        self.am, self.lm = leaf(N, T, V), leaf(N, S + 1, V)
        self.encoder, self.decoder, self.weight = leaf(N, T, J), leaf(N, S + 1, J), leaf(J, V)
        self.symbols = torch.randint(1, V, (N, S), generator=generator)
        self.boundary = torch.zeros(N, 4, dtype=torch.int64)
        self.boundary[:, 2] = torch.tensor([14, 9, 1, 12, 5, 13])
        self.boundary[:, 3] = torch.tensor([60, 41, 33, 14, 20, 52])

    def leaves(self) -> list[Tensor]:
        return [self.am, self.lm, self.encoder, self.decoder, self.weight]

    def common(self, rnnt_type: str, delay_penalty: float) -> dict[str, Any]:
        return dict(
            symbols=self.symbols,
            termination_symbol=0,
            boundary=self.boundary,
            rnnt_type=rnnt_type,
            delay_penalty=delay_penalty,
            reduction="none",
        )


def smoothed(module: Any, problem: Problem, rnnt_type: str, penalty: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return module.rnnt_loss_smoothed(
        lm=problem.lm,
        am=problem.am,
        lm_only_scale=0.25,
        am_only_scale=0.1,
        return_grad=True,
        **problem.common(rnnt_type, penalty),
    )


def pruned(module: Any, problem: Problem, ranges: Tensor, rnnt_type: str, penalty: float) -> Tensor:
    encoder, decoder = module.do_rnnt_pruning(am=problem.encoder, lm=problem.decoder, ranges=ranges)
    logits = torch.tanh(encoder + decoder) @ problem.weight
    return module.rnnt_loss_pruned(logits=logits, ranges=ranges, **problem.common(rnnt_type, penalty))


def assert_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    error = (ours.double() - theirs).abs().max() / theirs.abs().max()
    assert float(error) <= TOLERANCE, f"{what}: relative difference {float(error):.1e}"


def assert_losses_close(ours: Tensor, theirs: Tensor) -> None:
    error = ((ours.double() - theirs) / theirs).abs().max()
    assert float(error) <= TOLERANCE, f"loss: relative difference {float(error):.1e}"


def gradients(losses: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(0.5, 1.5, N, dtype=losses.dtype)  # each utterance's gradient has its own scale
    return list(torch.autograd.grad((losses * weights).sum(), leaves))


def test_k2_is_taken_on_a_gpu_and_where_it_is_asked_for() -> None:
    assert rnnt_loss.backend("auto", torch.device("cuda")) == "k2"
    assert rnnt_loss.backend("k2", torch.device("cpu")) == "k2"
    assert rnnt_loss.backend("auto", torch.device("cpu")) == "torch"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", (0.0, 0.2))
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_smoothed_loss_and_its_gradients_equal_k2(rnnt_type: str, penalty: float, dtype: torch.dtype) -> None:
    mine, yours = Problem(dtype), Problem(torch.float64)
    ours, our_occupation = smoothed(rnnt_loss, mine, rnnt_type, penalty)
    theirs, their_occupation = smoothed(k2, yours, rnnt_type, penalty)
    assert_losses_close(ours, theirs)
    for a, b in zip(gradients(ours, [mine.am, mine.lm]), gradients(theirs, [yours.am, yours.lm]), strict=True):
        assert_close(a, b, "gradient")
    for a, b in zip(our_occupation, their_occupation, strict=True):
        assert_close(a, b, "occupation")


@pytest.mark.parametrize("s_range", (2, 5, S + 4))
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_ranges_equal_k2(rnnt_type: str, s_range: int) -> None:
    for seed in range(10):
        problem = Problem(torch.float64, seed)
        _, theirs = smoothed(k2, problem, rnnt_type, 0.0)
        _, ours = smoothed(rnnt_loss, problem, rnnt_type, 0.0)
        expected = k2.get_rnnt_prune_ranges(*theirs, problem.boundary, s_range)
        assert torch.equal(rnnt_loss.get_rnnt_prune_ranges(*ours, problem.boundary, s_range), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", (0.0, 0.2))
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_pruned_loss_and_its_gradients_equal_k2(rnnt_type: str, penalty: float, dtype: torch.dtype) -> None:
    mine, yours = Problem(dtype), Problem(torch.float64)
    _, occupation = smoothed(k2, yours, rnnt_type, penalty)
    ranges = k2.get_rnnt_prune_ranges(*occupation, yours.boundary, 5)
    ours = pruned(rnnt_loss, mine, ranges, rnnt_type, penalty)
    theirs = pruned(k2, yours, ranges, rnnt_type, penalty)
    assert_losses_close(ours, theirs)
    for a, b in zip(gradients(ours, mine.leaves()[2:]), gradients(theirs, yours.leaves()[2:]), strict=True):
        assert_close(a, b, "gradient")


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_both_losses_in_one_call_equal_k2(rnnt_type: str) -> None:
    problem = Problem(torch.float64)

    def losses(backend: str) -> rnnt_loss.RnntLosses:
        return rnnt_loss.transducer_losses(
            problem.am, problem.lm, problem.encoder, problem.decoder,
            lambda encoder, decoder, project_input: torch.tanh(encoder + decoder) @ problem.weight,
            problem.symbols, problem.boundary[:, 3], problem.boundary[:, 2],
            rnnt_loss.LossSettings(delay_penalty=0.1, rnnt_type=rnnt_type, backend=backend), reduction="none",
        )  # fmt: skip

    ours, theirs = losses("torch"), losses("k2")
    assert torch.equal(ours.ranges, theirs.ranges)
    assert_losses_close(ours.simple, theirs.simple)
    assert_losses_close(ours.pruned, theirs.pruned)
    leaves = problem.leaves()
    for a, b in zip(
        gradients(ours.simple + ours.pruned, leaves), gradients(theirs.simple + theirs.pruned, leaves), strict=True
    ):
        assert_close(a, b, "gradient")


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_a_training_step_of_the_model_through_k2_equals_ours(rnnt_type: str) -> None:
    features, feature_lens, tokens = random_batch((240, 170), symbols=12)
    settings = rnnt_loss.LossSettings(
        rnnt_type=rnnt_type, delay_penalty=0.1, prune_range=4
    )  # few enough for windows to differ
    chunk = ChunkConfig(8, 32)

    def step(backend: str) -> tuple[Tensor, dict[str, Tensor], float]:
        """The loss, the gradients, and the loss of the same batch after one optimiser step."""
        model = tiny_test_model(causal=True)  # in eval mode: no dropout, the same on both sides

        def loss() -> Tensor:
            losses = model(features, feature_lens, tokens, chunk, settings._replace(backend=backend))
            return 0.5 * losses["simple_loss"] + losses["pruned_loss"]

        before = loss()
        before.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        torch.optim.SGD(model.parameters(), lr=1e-4).step()
        return before.detach(), gradients, float(loss())

    (ours, our_gradients, _), (theirs, their_gradients, after) = step("torch"), step("k2")
    assert_losses_close(ours, theirs)
    assert after < float(theirs)
    assert {"encoder_embed.conv.0.weight", "decoder.embedding.weight", "joiner.output_linear.weight"} <= set(
        their_gradients
    )
    assert set(our_gradients) == set(their_gradients)
    norm = sum(float(gradient.square().sum()) for gradient in their_gradients.values()) ** 0.5
    for name, gradient in their_gradients.items():
        error = float((our_gradients[name] - gradient).norm()) / norm
        assert error <= TOLERANCE, f"{name}: {error:.1e} of the gradient's norm"

"""Contextual biasing: paths that say a hotword are preferred while they say it.

Each token of a hotword adds its score to the path.  Where the path turns away before the hotword is complete, what the
hotword has added is taken back; where it is complete, the path keeps it and begins anew.  Hotwords are found with the
automaton of Aho and Corasick ("Efficient string matching", 1975) over tokens.  Scores and the beginning anew are those
of sherpa-onnx's online modified_beam_search (context-graph.cc, strict_mode = false), so that both find the same words.

Shapes: N streams, B paths, V vocabulary, S states of the automaton.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Node:
    """What a path has said of some hotword.

    score: of its last token: the greatest of the hotwords that begin like this.
    value: the sum of the scores on the way here.
    ends: the node is a hotword.
    fail: the node of the longest other beginning of a hotword that the path ends with.
    """

    number: int
    score: float = 0.0
    value: float = 0.0
    ends: bool = False
    children: dict[int, Node] = field(default_factory=dict)
    fail: Node | None = None

    @property
    def match(self) -> Node | None:
        """The longest hotword that a path ends with here."""
        node: Node | None = self
        while node is not None and not node.ends:
            node = node.fail
        return node


class ContextGraph:
    """The automaton of some hotwords, as a `Scorer`.

    Args:
      hotwords: the tokens of each.
      scores: what each token of it adds.
      vocab_size: V.
    Raises:
      ValueError: a hotword without a token, which a path would say at every step.
    """

    def __init__(self, hotwords: Sequence[Sequence[int]], scores: Sequence[float], vocab_size: int) -> None:
        if not all(hotwords):
            raise ValueError("a hotword has no token")
        self.vocab_size = vocab_size
        nodes = _tree(hotwords, scores)
        moves = _moves(nodes)
        root = moves.pop(0)
        # where a token leads from each state: what is not listed leads where it leads from the root
        table = sorted((state * vocab_size + token, to) for state, row in moves.items() for token, to in row.items())
        keys, targets = zip(*table, strict=True) if table else ((), ())
        self._keys = torch.tensor([*keys, torch.iinfo(torch.int64).max])
        self._targets = torch.tensor([*targets, 0])
        self._from_root = torch.zeros(vocab_size, dtype=torch.int64)
        for token, target in root.items():
            self._from_root[token] = target
        matches = [node.match for node in nodes]
        self._value = torch.tensor([node.value for node in nodes])  # (S,)
        self._kept = torch.tensor([(match or node).value for node, match in zip(nodes, matches, strict=True)])
        self._next = torch.tensor([0 if match else node.number for node, match in zip(nodes, matches, strict=True)])

    def start(self, num_streams: int, num_paths: int, device: torch.device) -> tuple[Tensor, ...]:
        """As `Scorer.start`: (N, B), the state of the automaton."""
        if self._value.device != device:
            for name, table in vars(self).items():
                if isinstance(table, Tensor):
                    setattr(self, name, table.to(device))
        return (torch.zeros(num_streams, num_paths, dtype=torch.int64, device=device),)

    def advance(self, state: tuple[Tensor, ...], token: Tensor, emits: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `Scorer.advance`."""
        (before,) = state
        key = before * self.vocab_size + token
        place = torch.searchsorted(self._keys, key)
        target = torch.where(self._keys[place] == key, self._targets[place], self._from_root[token])
        score = self._kept[target] - self._value[before]
        return score.masked_fill(~emits, 0.0), (torch.where(emits, self._next[target], before),)

    def owed(self, state: tuple[Tensor, ...]) -> Tensor:
        """As `Scorer.owed`: what hotwords that are not complete have added."""
        return self._value[state[0]]


def _tree(hotwords: Sequence[Sequence[int]], scores: Sequence[float]) -> list[Node]:
    """All nodes, parents first and the root at 0, with values and failure links."""
    root = Node(0)
    nodes = [root]
    for tokens, score in zip(hotwords, scores, strict=True):
        node = root
        for token in tokens:
            if token not in node.children:
                node.children[token] = Node(len(nodes), score)
                nodes.append(node.children[token])
            node = node.children[token]
            node.score = max(node.score, score)
        node.ends = True
    ordered, queue = [], deque([root])
    while queue:  # breadth first: a failure link leads to a shorter beginning
        node = queue.popleft()
        node.number = len(ordered)
        ordered.append(node)
        for token, child in node.children.items():
            child.value = node.value + child.score
            fail = node.fail
            while fail is not None and token not in fail.children:
                fail = fail.fail
            child.fail = root if fail is None else fail.children[token]
            queue.append(child)
    return ordered


def _moves(nodes: Sequence[Node]) -> dict[int, dict[int, int]]:
    """By state: where tokens lead; for all but the root without those that lead where they lead from the root."""
    moves: dict[int, dict[int, int]] = {}
    for node in nodes:
        inherited = moves[node.fail.number] if node.fail is not None and node.fail.number else {}
        moves[node.number] = {**inherited, **{token: child.number for token, child in node.children.items()}}
    return moves

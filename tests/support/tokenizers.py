"""Tokenizers of other languages and kinds, trained in a test, and texts that they normalise."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from kdstream.data.tokenizer import Tokenizer

ICEFALLS = {"user_defined_symbols": ["<blk>", "<sos/eos>"], "unk_id": 2, "bos_id": -1, "eos_id": -1}

# As people write them, and as sentencepiece does
VIETNAMESE = [unicodedata.normalize("NFD", word) for word in "tiếng việt được người những khoẻ".split()]
HANGUL = [unicodedata.normalize("NFD", word) for word in "안녕하세요 감사합니다 한국어 학교 사람".split()]
PERSIAN = ["می\u200cروم", "کتاب\u200cها", "نمی\u200cدانم", "خانه\u200cها", "آن"]  # \u200c joins nothing, and is a blank
WIDE = ["ＡＢＣ", "１２", "Ｔシャツ", "ｶﾒﾗ", "㈱", "…"]
CHINESE = ["你好世界", "今天天气很好", "我有iPhone手机", "他说英语"]
THAI = ["สวัสดีครับ", "กำลังกินข้าว", "ผู้หญิง"]
LANGUAGES = {
    "decomposed": VIETNAMESE, "jamo": HANGUL, "joiners": PERSIAN, "full width": WIDE, "Chinese": CHINESE, "Thai": THAI,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "unigram": {},
    "char": {"model_type": "char"},
    "bpe": {"model_type": "bpe"},
    "byte fallback": {"byte_fallback": True, "character_coverage": 0.98},
    "case folding": {"normalization_rule_name": "nmt_nfkc_cf"},
    "no normalisation": {"normalization_rule_name": "identity"},
    "no blank first": {"add_dummy_prefix": False},
    "blank last": {"treat_whitespace_as_suffix": True},
    "other names": {"unk_piece": "[UNK]", "user_defined_symbols": ["<blk>"], "unk_id": 1},
}


def texts_of(words: Sequence[str], count: int = 6) -> list[str]:
    """Sentences of four words."""
    return [" ".join(words[(start + place) % len(words)] for place in range(4)) for start in range(count)]


def tiny_tokenizer(path: Path, texts: Sequence[str], **settings: Any) -> Tokenizer:
    """A model of `texts` with icefall's ids; `settings` are sentencepiece's."""
    wanted = {"vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 3, **ICEFALLS, **settings}
    if wanted.get("model_type") == "bpe":
        wanted["vocab_size"] = 30 + len(set("".join(texts)))
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(list(texts) * 5), model_writer=file, **wanted)
    return Tokenizer(path)

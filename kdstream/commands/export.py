"""Exports a trained model: weights alone, and ONNX files that an unmodified sherpa-onnx runs.

    python export.py --exp-dir exp/distilled --epoch 30 --avg 9 --chunk-size 8 --left-context-frames 32 --check a.wav

Writes into EXP_DIR pretrained.pt, pretrained.safetensors, tokens.txt and
{encoder,decoder,joiner}-epoch-30-avg-9-chunk-8-left-32.onnx, with .int8.onnx beside each: the same with 8-bit weights.
A Zipformer with --use-ctc 1 also gets ctc-*.onnx, which from_zipformer2_ctc of sherpa-onnx runs; bpe.vocab spells
hotwords.  Any chunk that the model can run will do, whatever it was trained with.

In full context, which is that of a model of --causal 0 and of any other with --chunk-size -1, the names end in
-offline.onnx.  These files are for sherpa-onnx's OfflineRecognizer, and ctc-*-offline.onnx for its from_zipformer_ctc.

--check transcribes audio files, directories of such and cuts of manifests with torch (as deployed), onnxruntime and
sherpa-onnx, each on one thread.  It prints tokens, the first difference, and seconds of compute per second of speech.
At the end it prints a line for each runtime, with the word error rate where cuts have transcripts: on a whole test set,
that is what int8 costs.  The exit status is 1 where float32 differs.  --blank-penalty is that of the runtimes.

--lm-exp-dir writes the language model too, as lm.onnx, and its bigram as 2gram.fst.  --check then also compares torch
with sherpa-onnx in modified_beam_search at --lm-scale-decode, --lodr-scale and --beam-size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.config.command_line import make_parser, read_experiment
from kdstream.config.decoding import ContextConfig, SearchConfig, WeightsConfig
from kdstream.config.experiment import TOKENS_FILE, VOCABULARY_FILE
from kdstream.config.flags import add_arguments, warn_of_unread
from kdstream.errors import UserError
from kdstream.units import FEATURE_FRAME_MS

CHECK_FLAGS = ("blank_penalty",)
LM_FLAGS = ("beam_size", "lm_exp_dir", "lm_scale_decode", "lodr_scale")


def print_sizes(paths: Sequence[Path]) -> None:
    print("\n".join(f"{path}  {path.stat().st_size / 1e6:.2f} MB" for path in paths))


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, (WeightsConfig, ContextConfig), data_flags=("bpe_model",))
    add_arguments(parser, SearchConfig, [*CHECK_FLAGS, *LM_FLAGS])
    parser.add_argument("--check", nargs="+", default=[], metavar="AUDIO", help="Audio or cuts to check with.")
    args = parser.parse_args(argv)

    from kdstream.checkpoints.store import save_pretrained
    from kdstream.checkpoints.trained import load_trained
    from kdstream.decoding.beam import ModifiedBeamSearch
    from kdstream.decoding.settings import choose_chunk
    from kdstream.evaluation.latency import LOOKAHEAD_MS, algorithmic_latency_ms
    from kdstream.export.check import check_exported, check_fused, read_speech
    from kdstream.export.language_model import export_lm, read_lm
    from kdstream.export.onnx import export_ctc, export_onnx, quantize, quantize_file
    from kdstream.models.encoders import ENCODERS
    from kdstream.models.streaming import SHORTEST

    config, decode = read_experiment(args)
    chunk = choose_chunk(config.model, decode)
    speech = read_speech(args.check, fewest=SHORTEST if chunk is None else 0)
    if decode.lm_exp_dir and chunk is None:
        raise UserError("goes with a streaming model alone", flag="--lm-exp-dir", fix="leave it out")
    trained, folder = load_trained(config, decode), Path(decode.exp_dir)
    tokenizer = trained.tokenizer
    search = fused = None
    if decode.lm_exp_dir:
        search = ModifiedBeamSearch(**{name: getattr(decode, name) for name in (*CHECK_FLAGS, *LM_FLAGS)})
        fused = read_lm(Path(decode.lm_exp_dir), tokenizer, lodr=bool(decode.lodr_scale))
    else:
        warn_of_unread(decode, LM_FLAGS, "without --lm-exp-dir")
    if not speech:
        warn_of_unread(decode, CHECK_FLAGS, "without --check")
    written = save_pretrained(folder, trained.model)
    if chunk is None and not speech and ENCODERS.find(config.model.encoder).step is None:
        print_sizes(written)  # there are its weights, at least
        return
    name = trained.name.replace("_", "-")
    files = export_onnx(trained.model, chunk, folder, name)
    int8 = quantize(files)
    head = export_ctc(trained.model, chunk, folder, name)
    ctc = None if head is None else (head, quantize_file(head))
    spelling = [folder / TOKENS_FILE, folder / VOCABULARY_FILE]
    tokenizer.save_tokens(spelling[0])
    tokenizer.save_vocabulary(spelling[1])
    language_model = export_lm(*fused, folder) if fused else []
    print_sizes([*written, *files, *int8, *(ctc or ()), *spelling, *language_model])
    if chunk is not None:
        parts = f"a chunk of {chunk.chunk_ms} ms" + (f", right context of {chunk.right_ms} ms" if chunk.right else "")
        print(f"algorithmic latency: {algorithmic_latency_ms(chunk)} ms, {parts} and a look-ahead of {LOOKAHEAD_MS} ms")
        tail_ms = chunk.tail * FEATURE_FRAME_MS
        print(f"tail padding: {tail_ms} ms of zeros; a client sends them at the end, before input_finished()")
    if speech:
        check_exported(trained.model, chunk, files, int8, tokenizer, speech, ctc, decode.blank_penalty)
    if speech and search and chunk is not None:
        check_fused(trained.model, chunk, files, search.for_tokens(tokenizer), tokenizer, speech)

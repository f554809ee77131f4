"""Makes Lhotse manifests of any corpus that Lhotse has a recipe for.

    kdstream prepare-recipe --lhotse-recipe tedlium --corpus-dir download/TEDLIUM_release-3 --text-remove '<unk>' \
        --output-dir data/manifests
    kdstream prepare-recipe --lhotse-recipe switchboard --corpus-dir LDC97S62 \
        --recipe-args 'transcripts_dir=/data/swb_ms98_transcriptions' --text-remove '\\[[^]]*\\]' \
        --output-dir data/manifests

runs lhotse.recipes.prepare_<name> and writes <name>_{recordings,supervisions}_<part>.jsonl.gz of the segments that can
be used, and <name>_parts.sh, which tells what each part is for.  Segments are left out by these rules, counted in the
log, and named in <name>_left_out_<part>.txt.  Each has a text, lies within its recording, is on a channel that this
has, and overlaps no other of that channel by more than 0.1 s.  Where more than half of a part would be left out, the
command stops.

Parts whose names begin with train, dev or valid, test or eval serve that purpose; --train-parts and so on say it
otherwise.  A corpus without a part for dev or test gives up --held-out-share of its training speech to each: whole
speakers and whole recordings, the same ones each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.config.command_line import log_to_stderr
from kdstream.config.flags import add_jobs, names_in, parser_of
from kdstream.corpus.text_remove import add_text_remove, check_text_remove
from kdstream.errors import UserError, option


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--lhotse-recipe", required=True, help="NAME of lhotse.recipes.prepare_NAME.")
    parser.add_argument("--corpus-dir", type=Path, required=True, help="The recipe's first argument.")
    parser.add_argument("--recipe-args", default="", help="More of its arguments: 'NAME=VALUE NAME=VALUE'.")
    parser.add_argument("--output-dir", type=Path, default=Path("data/manifests"), help="Directory to write.")
    for role in ("train", "dev", "test"):
        parser.add_argument(f"--{role}-parts", default="", help="Parts for it, separated by commas.")
    parser.add_argument("--held-out-share", type=float, default=0.05, help="See above (default: %(default)s)")
    parser.add_argument("--channel", type=int, help="Take the segments of this channel alone (default: all)")
    add_text_remove(parser)
    add_jobs(parser, "Processes, where the recipe takes several")
    args = parser.parse_args(argv)
    if not 0 < args.held_out_share < 0.5:
        raise UserError(
            "must lie between 0 and 0.5", flag=option("held_out_share", args.held_out_share), fix="try 0.05"
        )
    check_text_remove(args.text_remove)

    from kdstream.corpus.parts import Roles
    from kdstream.corpus.prepare import prepare_recipe
    from kdstream.corpus.recipes import parse_arguments

    log_to_stderr()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    given = map(names_in, (args.train_parts, args.dev_parts, args.test_parts))
    prepare_recipe(
        args.lhotse_recipe,
        args.corpus_dir.resolve(),
        args.output_dir,
        parse_arguments(args.recipe_args),
        Roles(*given),
        args.held_out_share,
        args.jobs,
        args.channel,
        args.text_remove,
    )

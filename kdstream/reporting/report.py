"""The report of one experiment folder: report.html, one page with everything, and report.md with the same plots."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdstream.errors import UserError
from kdstream.evaluation.compare import compare, compare_delays
from kdstream.evaluation.records import MODES
from kdstream.evaluation.tables import (
    LATENCY_CELLS,
    commands_block,
    latency_notes,
    latency_rows,
    rate_shown,
    rows_table,
    wer_table,
)
from kdstream.files import write_text
from kdstream.reporting import findings, page, plots, sources, utterances
from kdstream.reporting.page import Section
from kdstream.reporting.relations import Relations, read_relations
from kdstream.reporting.style import phone_style

MAX_PICTURES = 2_000_000  # bytes; in base64, and with the text, the page stays below 3 MB
CURVES = (
    "Systems that differ in --delay-penalty alone share a curve; the penalty stands beside their points. A curve joins "
    "the points that no other point of it beats in both latency and WER. The other points are hollow."
)
DELAYS = (
    "How much later words come than with the baseline, in milliseconds, over words that both systems got right: the "
    "mean and in brackets its 95 % interval (bootstrap over utterances). Below zero is earlier. Each row compares one "
    "training with one: the interval does not say how much others would differ."
)

INTERVALS = (
    "Brackets hold 95 % intervals, by a bootstrap over the seeds, where there are several, and over utterances. With 1 "
    "seed an interval does not say how much another training would differ."
)
TRAINED = "Speech: what training went through, repetitions counted. Compute: its time, multiplied by its processes."
PAIRED = (
    "Intervals of the comparison are paired: both systems on the same resampled utterances, each with its own seeds."
)


class Report:
    """What a report is made of.

    Args:
      exp_root: directory of the experiment directories.
      systems: their names.
      baseline: the system to compare the others with, or its directory.
      output: directory to write to; made if it is not there.
    Raises:
      UserError: a system without results, or none at all.
    """

    def __init__(self, exp_root: Path, systems: Sequence[str], baseline: str, output: Path) -> None:
        systems = list(dict.fromkeys(map(os.path.normpath, systems)))  # "baseline/" is "baseline"
        self.exp_root, self.systems, self.output = exp_root, systems, output
        self.runs = sources.read_runs(exp_root, systems)
        records = [record for of_system in self.runs.values() for record in of_system]
        if not records:
            raise UserError(f"{exp_root}: no results yet", fix="run decode.py and streaming_decode.py first")
        folders = zip(systems, self.runs.values(), strict=True)
        system_of = {folder: of[0].system if of else folder for folder, of in folders}
        names = list(dict.fromkeys([*(record.system for record in records), *system_of.values()]))
        self.records = sorted(
            records, key=lambda r: (names.index(r.system), MODES.index(r.mode), r.chunk_ms or 0, r.right_ms)
        )
        self.baseline = baseline if baseline in names else system_of.get(os.path.normpath(baseline), baseline)
        self.reductions = compare(self.runs, self.baseline)
        self.headline = findings.headline(self.records, self.reductions)
        self.colours = plots.colours_of(names)
        self.curve_colours = {folder: self.colours[system] for folder, system in system_of.items()}
        self.delays: list[dict[str, Any]] = []  # how much later words come than the baseline's
        self.pictures: list[Path] = []  # in the order of the page
        self.bytes_left = MAX_PICTURES

    def write(self) -> Path:
        """Writes the plots, report.md and report.html; returns the latter."""
        self.output.mkdir(parents=True, exist_ok=True)
        sections: list[Section] = []
        missing: list[str] = []
        if not self.reductions:
            missing.append(
                f"Comparison: nothing was decoded as {self.baseline} was, with its settings; --baseline takes "
                f"any of {', '.join(self.colours)}"
            )
            logging.warning(missing[0])
        with phone_style():
            for title, build in self.parts().items():
                try:
                    sections.append(Section(title, build()))
                except UserError as error:
                    missing.append(f"{title}: {error}")
        if missing:
            sections.append(Section("Not in this report", page.notes(missing)))
        sections.append(Section("Commands", page.commands(dict.fromkeys(record.command for record in self.records))))
        write_text(self.output / "report.md", self.markdown())
        title = f"Report: {self.exp_root.resolve().name}"
        html = self.output / "report.html"
        write_text(html, page.document(title, self.headline, sections))
        return html

    def parts(self) -> dict[str, Callable[[], str]]:
        """By heading, what makes the HTML below it.  Where it raises UserError, the page says why it is missing."""
        return {
            "Word error rates": self.word_error_rates,
            "Latency": self.latencies,
            "Losses": self.losses,
            "Attention relations": self.relations,
            "Similarity of layers": self.similarities,
            "Sensitivity": self.sensitivity,
            "Utterances": self.utterances,
        }

    def word_error_rates(self) -> str:
        plots.plot_wers(self.records, self.colours, self.output / "wer.png")
        explained = f"{rate_shown(self.records)} in per cent. {INTERVALS}"
        if self.reductions:
            explained += f" {PAIRED}"
        return "\n".join(
            [
                page.table(*findings.wer_rows(self.records, self.reductions, self.baseline)),
                page.note(explained),
                page.details(
                    "Models and what they took to train",
                    page.table(*findings.model_rows(self.records)) + page.note(TRAINED),
                ),
                self.picture(self.output / "wer.png", "Bars: the word error rates of the table, with their intervals."),
            ]
        )

    def latencies(self) -> str:
        if all(record.latency_ms is None for record in self.records):
            raise UserError("nothing was decoded in streaming", fix="run streaming_decode.py")
        self.draw_latencies(self.output / "latency.png")
        self.delays = compare_delays(self.runs, self.baseline)
        rows = latency_rows(self.records)
        pieces = [
            self.picture(self.output / "latency.png", "Word error rate over latency, one curve a system.", CURVES),
            page.table(*findings.as_table(rows)),
            page.note(LATENCY_CELLS),
            page.definitions(latency_notes(rows)),
        ]
        if self.delays:
            pieces += [page.heading(f"Against {self.baseline}"), page.table(*findings.as_table(self.delays))]
            pieces.append(page.note(DELAYS))
        return "\n".join(pieces)

    def draw_latencies(self, path: Path) -> None:
        """Writes the picture of word error rate over latency, as PNG or SVG."""
        with phone_style():
            plots.plot_latencies(self.records, sources.read_families(self.runs), self.colours, path)

    def losses(self) -> str:
        curves = {system: sources.read_curves(self.exp_root / system) for system in self.systems}
        if not any(curves.values()):
            raise UserError(f"no TensorBoard files under {self.exp_root}", fix="train with --tensorboard 1")
        plots.plot_losses(curves, self.curve_colours, self.output / "loss.png")
        caption = "Per 40 ms frame. The weighted sum holds the distillation losses in training, but not in validation."
        return self.picture(self.output / "loss.png", "Small panels: each loss over batches, all systems.", caption)

    def relations(self) -> str:
        """The maps of the first system that was distilled through branches."""
        reasons = []
        for system in self.systems:
            try:
                relations = read_relations(self.exp_root / system)
            except UserError as error:
                reasons.append(str(error))
                continue
            plots.plot_relations(relations, self.output / "relations.png")
            alt = "Maps of which frames are similar, for queries, keys and values: teacher, auxiliary branch, student."
            return self.picture(self.output / "relations.png", alt, _relations_caption(system, relations))
        raise UserError("; ".join(dict.fromkeys(reasons)))

    def similarities(self) -> str:
        pictures = []
        for folder in (self.exp_root, *(self.exp_root / system for system in self.systems)):
            source = folder / sources.SIMILARITY_JSON
            if source.is_file():
                path = self.output / f"similarity-{folder.resolve().name}.png"
                plots.plot_similarity(sources.read_similarity(source), folder.resolve().name, path)
                alt = "Heat map: how similar each student layer and each teacher layer are."
                pictures.append(self.picture(path, alt, "Linear CKA: 1 is equal up to rotation and scale."))
        if not pictures:
            raise UserError(f"no {sources.SIMILARITY_JSON} under {self.exp_root}", fix="run kdstream layer-similarity")
        return "\n".join(pictures)

    def sensitivity(self) -> str:
        found = sorted(self.exp_root.glob(sources.SWEEPS))
        if not found:
            raise UserError(f"no {sources.SWEEPS} in {self.exp_root}", fix="run kdstream sweep")
        return "\n".join(self.picture(path, f"Map of a sweep: {path.stem}.", path.stem) for path in found)

    def utterances(self) -> str:
        pieces = []
        for test_set in dict.fromkeys(record.test_set for record in self.records):
            runs = utterances.comparable(self.runs, test_set)
            if not runs:
                continue
            compared = utterances.compare_utterances({system: recogs for system, (_, recogs) in runs.items()})
            how = "; ".join(f"{system}: {findings.decoding_shown(record)}" for system, (record, _) in runs.items())
            pieces.append(page.note(f"{test_set}, {len(compared)} utterances. {how}."))
            for title, chosen in zip(
                ("Where the systems differ most", "Most errors besides"),
                utterances.worth_reading(compared),
                strict=True,
            ):
                if chosen:
                    pieces += [page.heading(f"{title} ({test_set})"), *map(page.comparison, chosen)]
        if not pieces:
            raise UserError(f"no recogs files under {self.exp_root}", fix="run decode.py again")
        return "\n".join(pieces)

    def picture(self, path: Path, alt: str, caption: str = "") -> str:
        """The HTML of a PNG file; where it would make the page too large, only its path."""
        self.pictures.append(path)
        self.bytes_left -= path.stat().st_size
        if self.bytes_left < 0:
            self.bytes_left += path.stat().st_size
            return page.note(f"{path} is too large for this page ({path.stat().st_size / 1e6:.1f} MB); see it there.")
        return page.image(path, alt, caption)

    def markdown(self) -> str:
        """report.md: the tables, the pictures and the commands."""
        parts = [
            "# Report\n",
            *(f"{paragraph}\n" for paragraph in self.headline),
            f"{rate_shown(self.records)} in per cent. {INTERVALS}\n",
            wer_table(self.records),
        ]
        if self.reductions:
            parts += [
                f"## Relative reduction of the {rate_shown(self.records)} against {self.baseline}\n",
                f"{PAIRED}\n",
                rows_table([reduction.row() for reduction in self.reductions]),
            ]
        if any(record.latency_ms is not None for record in self.records):
            rows = latency_rows(self.records)
            defined = "".join(f"- {name}: {meaning}\n" for name, meaning in latency_notes(rows).items())
            parts += ["## Latency\n", f"{LATENCY_CELLS}\n", rows_table(rows), defined]
        if self.delays:
            parts += [f"{DELAYS}\n", rows_table(self.delays)]
        parts += [f"![{path.stem}]({os.path.relpath(path, self.output)})\n" for path in self.pictures]
        return "\n".join([*parts, "## Commands\n", commands_block(self.records)])


def _relations_caption(system: str, relations: Relations) -> str:
    student, teacher = relations.layers
    return (
        f"{system}, cut {relations.cut_id}: \u201c{relations.text}\u201d. softmax(XX\u1d40/\u221ad) for X = Q, K, V, "
        f"mean over heads; frames of {relations.frame_ms} ms. Layer {student} of the student, its auxiliary branch, "
        f"and layer {teacher} of the teacher, with the weights of {relations.weights.name}. Darker is more, on one "
        "scale per row; KL is the divergence from the teacher in nats."
    )

"""What a report reads: families of systems, loss curves, similarities of layers."""

from __future__ import annotations

import json

import pytest

from kdstream.errors import UserError
from kdstream.evaluation.records import add_record
from kdstream.reporting import sources
from kdstream.reporting.sources import Member
from support.records import make_record
from support.reporting import write_curves, write_measured


def test_systems_that_differ_in_the_delay_penalty_alone_are_a_family(tmp_path):
    write_measured(tmp_path)

    def families() -> dict[str, Member]:
        return sources.read_families(sources.read_runs(tmp_path, ("early", "plain", "o")))

    assert families() == {"early": Member("plain", 0.01), "plain": Member("plain", 0.0), "o": Member("o", 0.0)}
    (tmp_path / "o" / "config.json").write_text((tmp_path / "plain" / "config.json").read_text())
    assert {member.family for member in families().values()} == {"early", "plain", "o"}  # twice the same penalty
    (tmp_path / "o" / "config.json").unlink()
    assert families() == {"early": Member("plain", 0.01), "plain": Member("plain", 0.0), "o": Member("o", 0.0)}


def test_a_report_counts_a_system_once_whatever_checkpoints_were_decoded(tmp_path, caplog):
    path = tmp_path / "baseline" / "results.json"
    for checkpoint, wer in (("epoch-8_avg-1", 30.0), ("epoch-8_avg-9", 25.0), ("epoch-8_avg-3", 20.0)):
        for test_set in ("clean", "other"):
            add_record(path, make_record(checkpoint=checkpoint, wer=wer, test_set=test_set))
    (records,) = sources.read_runs(tmp_path, ["baseline"]).values()
    assert [(r.test_set, r.wer) for r in records] == [("clean", 20.0), ("other", 20.0)]
    line = f"{path}: of baseline epoch-8_avg-3, decoded last, not epoch-8_avg-1, epoch-8_avg-9"
    assert [record.message for record in caplog.records] == [line]


def test_two_directories_of_one_system_are_refused(tmp_path):
    for folder, seed in (("a/x", 1), ("b/x", 2), ("c/x", 1)):
        add_record(tmp_path / folder / "results.json", make_record(system="x", seed=seed))
    assert len(sources.read_runs(tmp_path, ["a/x", "b/x"])) == 2
    with pytest.raises(
        UserError, match=r"a/x and .*c/x: both call their system x, seed 1; decode one .* --system NAME"
    ):
        sources.read_runs(tmp_path, ["a/x", "b/x", "c/x"])


def test_losses_are_read_whole_and_shown_in_a_fixed_order(tmp_path):
    for system, losses in (("baseline", []), ("distilled", ["feature_loss", "token_loss"])):
        write_curves(tmp_path / system, ["loss", "pruned_loss", *losses])
    curves = {system: sources.read_curves(tmp_path / system) for system in ("teacher", "baseline", "distilled")}
    assert curves["teacher"] == {}
    assert sources.losses_in(curves) == ["pruned_loss", "feature_loss", "token_loss", "loss"]
    assert set(curves["baseline"]["pruned_loss"]) == {"training", "validation"}
    assert curves["distilled"]["token_loss"]["training"][1] == (20, pytest.approx(0.05))


@pytest.mark.parametrize("cka", [[[1.0]], [], [["x", "y"]], [[1.0, 2.0], [1.0]]])
def test_a_damaged_similarity_file_is_named(tmp_path, cka):
    path = tmp_path / "layer_similarity.json"
    path.write_text(json.dumps({"student_layers": ["0.0"], "teacher_layers": ["0.0", "1.0"], "cka": cka}))
    with pytest.raises(UserError, match="layer_similarity.json"):
        sources.read_similarity(path)

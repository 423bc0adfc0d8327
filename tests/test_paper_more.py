"""Three more paper notebooks, run on a world of two dozen people: other constraints, an ablation, the choice of the radius."""
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from paper_notebooks import MEANS, TINY, assert_means, assert_whole, folder, list_runs, load_rows, run, table, with_errors  # noqa: F401

AT_THE_EDGE = {"editors", "editors_curves"}  # what no wider grid has settled: figures/README.md says why
WORLD = {"num_modified": 4, **TINY}
CONSTRAINTS = {
    "radii": {"linf": [0.05, 0.2], "fisher_batch": [0.005, 0.05]}, "weights": {"ewc": [1000.0, 10.0]}, "block": 1,
    "levels": [20, 101], "between": [5, 25], "heldout_seeds": [0], **WORLD,
}


@pytest.fixture(scope="module")
def constraints(folder):
    "The curves' csv, text and record, and the csv and text of the comparison."
    curves = run("constraints", folder, **CONSTRAINTS)
    name = folder / "figures" / "constraints_matched"
    return *curves, pd.read_csv(f"{name}.csv"), name.with_suffix(".md").read_text(encoding="utf-8")


def read_by_hand(rows, level):
    "The largest A_F\\S at one A_M on a straight line between any two points of a curve, or at a point above it."
    start = rows[["modified_accuracy_before", "unmodified_accuracy_before"]].iloc[0]
    points = [tuple(start), *rows[["modified_accuracy", "unmodified_accuracy"]].itertuples(index=False, name=None)]
    points = [one for one in points if not any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in points)]
    above, below = [one for one in points if one[0] >= level], [one for one in points if one[0] < level]
    if not above or not below:
        return min(above)[1] if above else math.nan
    (high, forgot), (low, kept) = min(above), max(below)
    return kept + (forgot - kept) * (level - low) / (high - low)


def test_constraints_have_a_curve_each_and_all_their_points_are_in_the_csv(folder, constraints):
    csv, text, record, _, _ = constraints
    rows = load_rows("constraints", folder, **CONSTRAINTS)
    assert list(csv) == ["constraint", "radius", "penalty_weight", "strength", *with_errors(MEANS)]
    assert csv["constraint"].tolist() == ["L-infinity"] * 2 + ["Fisher, batch"] * 2 + ["EWC penalty"] * 2 + ["no constraint"]
    assert csv["strength"].tolist() == [0.05, 0.2, 0.005, 0.05, 0.001, 0.1, math.inf]
    assert (csv["runs"] == 2).all()
    paid = rows[rows["penalty"] == "ewc"].groupby("penalty_weight")[MEANS].mean()
    ours = csv[csv["constraint"] == "EWC penalty"].set_index("penalty_weight")[MEANS].sort_index()
    pd.testing.assert_frame_equal(ours, paid, check_index_type=False)
    assert_whole("constraints", folder, record, CONSTRAINTS)
    assert "(constraints.svg)" in text and set(rows.loc[rows["facts"] == "heldout", "norm"]) == {"linf", "fisher_batch"}


def test_constraints_are_matched_at_the_same_accuracy_seed_by_seed(folder, constraints):
    *_, matched, text = constraints
    rows = load_rows("constraints", folder, **CONSTRAINTS).query("facts == 'reported'")
    rows = rows[(rows["radius"] < math.inf) | (rows["penalty"] == "ewc")]
    rows = rows.assign(kind=rows["norm"].where(rows["penalty"] != "ewc", "ewc"))
    by_hand = pd.Series({key: read_by_hand(curve, 20) for key, curve in rows.groupby(["kind", "seed"])}).unstack(0)
    matched = matched.set_index("constraint")
    named = {"linf": "L-infinity", "fisher_batch": "Fisher, batch", "ewc": "EWC penalty"}
    for kind, name in named.items():
        assert matched.loc[name, "unmodified_at_20"] == pytest.approx(by_hand[kind].mean(), nan_ok=True)
    difference = (by_hand["ewc"] - by_hand["linf"]).dropna()
    assert len(difference) == 2 and matched.loc["EWC penalty", "unmodified_at_20_difference"] == pytest.approx(difference.mean())
    assert matched.loc["EWC penalty", "unmodified_at_20_difference_se"] == pytest.approx(difference.sem())
    area = [sum(read_by_hand(curve, level) for level in range(5, 26)) / 21 for _, curve in rows[rows["kind"] == "linf"].groupby("seed")]
    assert matched.loc["L-infinity", "area"] == pytest.approx(sum(area) / 2)
    assert matched.loc["L-infinity", "seconds"] == pytest.approx(rows.loc[rows["kind"] == "linf", "seconds"].median())
    shown = table(text).set_index("constraint")
    assert set(shown["A_F\\S at A_M of 101 (%)"]) == {"not reached"} and matched["reached"].tolist() == [0, 0, 0]
    assert matched.loc["EWC penalty", "chosen"] in (10, 1000) and "The paper's claim" in text


def test_the_ablation_makes_both_choices_both_ways(folder):
    parameters = {"radii": [0.02, math.inf], "block": 1, **WORLD}
    csv, text, record = run("ablation", folder, **parameters)
    rows = load_rows("ablation", folder, **parameters)
    choices = ["radius", "drawn_from", "object_frequency"]
    assert csv[choices[1:]].values.tolist() == [["answered", "relation"], ["answered", "global"], ["all", "relation"], ["all", "global"]] * 2
    assert_means(csv, rows, choices)
    share = 100 * rows.groupby(choices)["majority_share"].mean()
    assert csv.set_index(choices)["majority_share"].to_dict() == pytest.approx(share.to_dict())
    assert_whole("ablation", folder, record, {**WORLD, "block": 1}, pictures=False)
    assert "majority share of S (%)" in table(text)


def test_the_radius_is_chosen_honestly_as_in_the_paper_and_by_an_oracle(folder):
    radii = {"0": [0.02, 0.2], "1": [0.05, 0.2]}
    parameters = {"radii": radii, "positions": {"0": "first", "1": "last"}, "heldout_seeds": [0], **WORLD}
    csv, text, record = run("radius_choice", folder, **parameters)
    rows = load_rows("radius_choice", folder, **parameters)
    assert csv["position"].tolist() == ["first", "last", "chosen too"] and (csv["runs"] == 2).all()
    reported = rows[rows["facts"] == "reported"].set_index(["blocks", "radius", "seed"])["average_accuracy"].sort_index()
    judges = rows[rows["facts"] == "heldout"].set_index(["blocks", "radius"])
    judges = (judges["modified_accuracy"] + judges["unmodified_accuracy_heldout"]) / 2
    choosers = {"0": judges.loc[["0"]], "1": judges.loc[["1"]], "any": judges}
    for one, (block, judge) in zip(csv.to_dict("records"), choosers.items()):
        ours = reported if block == "any" else reported.loc[[block]]
        honest, oracle = reported.loc[judge.idxmax()], ours.groupby("seed").max()
        assert one["held out"] == pytest.approx(honest.mean()) and one["oracle"] == pytest.approx(oracle.mean())
        assert one["reported"] == pytest.approx(ours.groupby(["blocks", "radius"]).mean().max())
        assert one["oracle less held out"] == pytest.approx((oracle - honest).mean(), abs=1e-6)
        assert one["oracle less held out_se"] == pytest.approx((oracle - honest).sem(), abs=1e-6)
        assert one["held out"] <= one["reported"] + 1e-9 <= one["oracle"] + 2e-9
    assert_whole("radius_choice", folder, record, parameters, pictures=False)
    assert len(table(text)) == 3


def test_their_quick_rows_are_those_of_other_notebooks_where_they_can_be():
    keys = {name: {one.key for one in list_runs(name)} for name in ("table_2", "norms", "constraints", "ablation", "radius_choice")}
    assert keys["radius_choice"] <= keys["table_2"]
    assert len(keys["constraints"] & keys["norms"]) == 10 and keys["ablation"] & keys["norms"]


@pytest.mark.parametrize(("scale", "first_blocks", "size", "steps"), [("paper", 4, 256, 20000), ("small", 2, 128, 2500), ("minilm", 2, 128, 2500), ("tiny", 1, 64, 2500)])
def test_a_scale_has_a_fae_of_its_own_size(scale, first_blocks, size, steps):
    from modmem.artefacts import choose_artefacts, list_runs, parameter_file

    [artefact] = choose_artefacts(["table_5"], file=parameter_file(scale))
    starts = {run.start for run in list_runs(artefact).runs}
    assert {(start.recipe.shape.first_blocks, start.recipe.shape.entity_size, start.recipe.finetuning.steps) for start in starts} == {(first_blocks, size, steps)}


@pytest.mark.parametrize(("trainings", "expected"), [(1, [0, 0, 0]), (2, [0, 1, 0]), (5, [0, 1, 2])])
def test_the_trainings_of_fae_come_in_turn_over_the_runs(trainings, expected):
    for name, method in (("table_5", "none"), ("table_2", "AWT")):
        settings = {"settings": [{"model": "base", "start": "FT", "method": "FaE", "radii": {"AWT": [0.1]}}]} if name == "table_2" else {"groups": ["none"]}
        runs = [one for one in list_runs(name, trainings=trainings, seeds=[0, 1, 2], heldout_seeds=[0], **settings) if one.sample.facts == "reported"]
        assert [(one.sample.seed, one.start.recipe.finetuning.seed, one.method.group) for one in runs] == [(seed, training, method) for seed, training in enumerate(expected)]


def test_fae_has_at_least_one_training():
    with pytest.raises(ValueError, match="trainings must be a whole number from 1, not 0"):
        list_runs("table_5", trainings=0)


def test_editors_have_draws_of_one_fact_and_a_table_for_each_start(folder):
    given = {**WORLD, "block": 1, "nums_modified": {"FT": [1, 4], "pretrained": [4]}, "single_draws": {"reported": 3, "heldout": 1}, "heldout_seeds": [0, 1], "heldout_most": 1,
             "strengths": {"FTM": [0.05, 0.2], "LocFT": [0.01]}, "single_strengths": {"FTM": [0.4]}, "only": {"LocFT": [4]}, "sequence": 4, "in_sequence": {"2": {"FTM": [0.1]}, "4": {"FTM": [0.2]}}, "sequence_seeds": [0]}
    del given["num_modified"]
    csv, _, _ = run("editors", folder, **given)
    rows = load_rows("editors", folder, **given)
    rows["mean"] = (rows["modified_accuracy"] + rows["unmodified_accuracy"].fillna(rows["unmodified_accuracy_heldout"])) / 2
    singles = rows[(rows["num_modified"] == 1) & (rows["radius"] == 0.05)]
    assert singles.groupby("facts")["seed"].agg(list).map(sorted).to_dict() == {"heldout": [0], "reported": [0, 1, 2]}
    assert set(rows.loc[rows["radius"] == 0.4, "num_modified"]) == {1}
    assert csv[["start", "num_modified", "method", "chosen_on"]].values.tolist() == [
        ["FT", 1, "FTM", "held out"], ["FT", 1, "FTM", "reported"], ["FT", 4, "FTM", "reported"], ["FT", 4, "LocFT", "reported"], ["pretrained", 4, "FTM", "reported"]]
    for line in csv.itertuples():
        part, dial = ("", "radius") if line.method == "FTM" else ("ffn_out", "learning_rate")
        own = rows[rows["start"].eq(line.start) & rows["num_modified"].eq(line.num_modified) & rows["method"].eq("edit") & rows["part"].fillna("").replace("all", "").eq(part)]
        means = own.pivot_table(index=dial, columns="facts", values="mean")
        chosen_on = means[{"held out": "heldout"}.get(line.chosen_on, "reported")]
        assert line.strength in chosen_on[chosen_on == chosen_on.max()].index and line.average_accuracy == pytest.approx(means.loc[line.strength, "reported"])
    sequence, parts = pd.read_csv(folder / "figures" / "editors_sequence.csv"), rows[rows["method"] == "sequence"].set_index("facts_at_once")
    assert sequence["method"].tolist() == ["FTM, 2 at once", "FTM, 4 at once"]
    assert sequence["average_accuracy"].tolist() == pytest.approx(parts.loc[[2, 4], "average_accuracy"].tolist())


def test_rows_that_are_there_need_no_data():
    from modmem import cli

    shipped = Path(__file__).parents[1] / "figures" / "small" / "rows.csv"
    options = {"store": "absent", "trex": "", "zsre": ""}
    artefacts = cli._plan(["table_3"], (), "small", options)
    cli._check_needs(artefacts, Path("absent"), shipped, "cpu", "local", "")
    with pytest.raises(Exception, match="table_3 asks for rows on trex, which needs --trex"):
        cli._check_needs(artefacts, Path("absent"), None, "cpu", "local", "")


def test_radii_chosen_in_the_world_lie_inside_their_grids_but_for_those_that_are_named():
    folder = Path(__file__).parents[1] / "figures" / "synthetic"
    cuts = {path.stem: [cut for cut in json.loads(path.read_text(encoding="utf-8")).get("cuts", ()) if "at the edge" in cut] for path in folder.glob("*.json")}
    assert len(cuts) > 15 and {name for name, found in cuts.items() if found} == AT_THE_EDGE

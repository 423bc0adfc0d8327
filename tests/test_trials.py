"""One trial, and the radius that the paper would choose: by the mean of both accuracies, on reported or on held-out facts."""
import math

import pandas as pd
import pytest
from tiny_models import WORLD, assert_untouched, snapshot, tiny_bert

from modmem.editor import ModificationConfig, modify_facts
from modmem.evaluation import evaluate
from modmem.modification import sample_modifications
from modmem.trials import Method, run_trial, select_radius

MODIFIED = sample_modifications(WORLD, num_modified=6, seed=0)
CONFIG = ModificationConfig(blocks=1, radius=4e-3, steps=6, batch_size=16)


def make_rows(*accuracies, **columns):
    "Rows of one group, from (radius, A_M, A_F\\S)."
    rows = pd.DataFrame(accuracies, columns=["radius", "modified_accuracy", "unmodified_accuracy"])
    return rows.assign(**{"blocks": 0, **columns})


def chosen(rows, by=("blocks",), **how):
    return select_radius(rows, list(by), **how)["radius"].tolist()


# a trial


def test_a_trial_is_the_edit_measured_and_leaves_the_model_alone():
    masked_lm = tiny_bert()
    before = snapshot(masked_lm)
    row = run_trial(masked_lm, MODIFIED, CONFIG).row
    assert_untouched(masked_lm, before)
    edit = modify_facts(masked_lm, MODIFIED, CONFIG)
    accuracy = evaluate(edit.apply_to_copy(masked_lm), MODIFIED)
    assert row["modified_accuracy"] == accuracy.modified and row["unmodified_accuracy"] == accuracy.unmodified
    assert row["average_accuracy"] == (accuracy.modified + accuracy.unmodified) / 2
    assert row.items() >= edit.record["outcome"].items()


def test_another_method_is_measured_in_its_own_way():
    method = Method("sum", lambda model, modified, config: (model + config, {"steps": 3}), lambda edited, modified: f"{edited} on {modified}")
    trial = run_trial("model", "facts", " edited", method)
    assert trial.accuracy == "model edited on facts" and trial.outcome == {"steps": 3}


# the radius


def test_the_best_mean_wins_and_of_radii_that_tie_the_smallest():
    assert chosen(make_rows((0.1, 0, 90), (0.2, 80, 60), (0.4, 90, 20))) == [0.2]
    assert chosen(make_rows((0.4, 50, 50), (0.2, 60, 40), (0.1, 40, 40))) == [0.2]


def test_no_constraint_and_rows_that_failed_are_never_chosen():
    rows = make_rows((0.1, 10, 40), (0.2, 99, 99), (math.inf, 100, 100), status=["done", "failed", "done"])
    assert chosen(rows) == [0.1]
    assert chosen(rows[1:]) == []
    assert chosen(make_rows((0.1, math.nan, 40), (0.2, 10, 10))) == [0.2]


def test_radii_are_compared_on_the_seeds_that_all_of_a_group_have():
    easy_and_hard = [(0.1, 82, 82), (0.1, 42, 42), (0.2, 80, 80), (0.2, 40, 40)]
    rows = make_rows(*easy_and_hard, seed=[0, 1, 0, 1])
    assert chosen(rows) == [0.1, 0.1]
    assert chosen(rows.assign(status=["done", "done", "done", "failed"])) == [0.1, 0.1], "80 of the easy draw alone is more than 62 of both"
    assert chosen(rows.assign(modified_accuracy=[82, 42, 80, math.nan])) == [0.1, 0.1], "nor does a draw without an accuracy"
    more = make_rows((0.2, 99, 99), seed=2)
    assert chosen(pd.concat([rows, more])) == [0.1, 0.1], "a third draw of one radius"
    assert chosen(pd.concat([rows, make_rows((0.2, 99, 99), seed=2, blocks=1)])) == [0.1, 0.1, 0.2], "other groups do not count"


def test_each_group_chooses_over_the_mean_of_its_seeds():
    first = make_rows((0.1, 50, 50), (0.1, 70, 50), (0.2, 90, 50), (0.2, 10, 50), seed=[0, 1, 0, 1])
    rows = pd.concat([first, make_rows((0.1, 0, 0), (0.2, 9, 9), blocks=1, seed=0)])
    best = select_radius(rows, ["blocks"])
    assert best[["blocks", "radius"]].drop_duplicates().to_numpy().tolist() == [[0, 0.1], [1, 0.2]] and len(best) == 3


def test_held_out_facts_choose_but_the_reported_row_is_handed_out():
    reported = make_rows((0.1, 60, 60), (0.2, 80, 80), facts="reported", unmodified_accuracy_heldout=math.nan)
    heldout = make_rows((0.1, 70, 0), (0.2, 60, 90), facts="heldout", unmodified_accuracy_heldout=[70, 20])
    rows = pd.concat([reported, heldout])
    assert chosen(rows) == [0.2] and chosen(rows, on="heldout") == [0.1]
    assert select_radius(rows, ["blocks"], "heldout")["facts"].tolist() == ["reported"]
    assert chosen(reported, on="heldout") == []


def test_blocks_may_be_chosen_along_with_the_radius():
    rows = pd.concat([make_rows((0.1, 50, 50), (0.2, 60, 60)), make_rows((0.1, 90, 90), (0.2, 80, 80), blocks=3)]).assign(norm="linf")
    best = select_radius(rows, ["norm"], also=["blocks"])
    assert best[["blocks", "radius"]].to_numpy().tolist() == [[3, 0.1]]
    further = pd.concat([rows, make_rows((0.05, 1, 1)).assign(norm="linf")])  # which block 3 was not tried at
    assert select_radius(further, ["norm"], also=["blocks"])["edge"].tolist() == [True]


@pytest.mark.parametrize(("best", "edge"), [(0.1, True), (0.2, False), (0.4, True)])
def test_a_radius_is_at_the_edge_if_nothing_beyond_it_was_tried(best, edge):
    rows = make_rows(*((radius, 90 if radius == best else 10, 50) for radius in (0.1, 0.2, 0.4, math.inf)))
    other = make_rows((0.05, 1, 1), (0.8, 1, 1), (0.2, 2, 2), blocks=3)  # which tried further
    found = select_radius(pd.concat([rows, other]), ["blocks"]).set_index("blocks")["edge"]
    assert found[0] == edge and not found[3]


@pytest.mark.parametrize(("share", "edge"), [(0.0, False), (0.001, True)])
def test_the_largest_radius_is_at_no_edge_if_no_weight_has_reached_it(share, edge):
    rows = make_rows((0.1, 10, 10), (0.4, 90, 50), share_on_face=[0.5, share])
    assert select_radius(rows, ["blocks"])["edge"].tolist() == [edge]
    assert select_radius(rows.rename(columns={"radius": "rate"}), ["blocks"], strength="rate")["edge"].tolist() == [True]
    assert select_radius(rows.assign(share_on_face=0.0, modified_accuracy=[99, 1]), ["blocks"])["edge"].tolist() == [True]


def test_what_differs_by_rounding_alone_is_a_tie_and_the_smallest_is_chosen():
    assert 0.1 + 0.2 > 0.3 and chosen(make_rows((0.1, 0.3, 0.3), (0.2, 0.1 + 0.2, 0.1 + 0.2))) == [0.1]


def test_a_single_radius_was_no_choice_and_has_no_edge():
    assert not select_radius(make_rows((0.1, 1, 1), (math.inf, 2, 2)), ["blocks"])["edge"].any()


def test_choosing_on_anything_else_is_refused():
    with pytest.raises(ValueError, match="'test'"):
        select_radius(make_rows((0.1, 1, 1)), ["blocks"], "test")

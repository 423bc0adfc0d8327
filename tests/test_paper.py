"""Every paper notebook, run on a world of two dozen people: its rows, its files, and what they say."""
import json
import math
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from paper_notebooks import (  # noqa: F401
    CHOSEN, MEANS, POSITIONS, TINY, assert_heldout_beside, assert_means, assert_whole, execute_here, execute_in_kernel, folder, list_runs, load_rows, run,
    table, tables, with_errors,
)

from modmem import fae_starts
from modmem.fae_training import train_fae
from modmem.statistics import read_off


def test_table_1_counts_files_and_worlds_and_says_what_was_not_run(folder):
    data = folder / "LAMA"
    (data / "TREx").mkdir(parents=True)
    (data / "relations.jsonl").write_text('{"relation": "P19", "template": "[X] was born in [Y] ."}\n', encoding="utf-8")
    sentence = {"masked_sentence": "Ada was born in [MASK].", "obj_surface": "London", "sub_surface": "Ada"}
    names = {"uuid": "a", "predicate_id": "P19", "sub_label": "Ada", "obj_label": "London", "sub_uri": "Q1", "obj_uri": "Q2"}
    (data / "TREx" / "P19.jsonl").write_text(json.dumps(names | {"evidences": [sentence, sentence]}) + "\n", encoding="utf-8")
    csv, text, record = run("table_1", folder, num_subjects=12, places={"trex": str(data)})
    assert list(csv) == ["benchmark", "side", "questions", "facts", "distinct_questions"]
    assert csv["benchmark"].tolist() == ["T-REx", "T-REx", "zsRE", "zsRE", "world (question)", "world (question)"]
    assert csv["questions"].fillna(-1).tolist() == [2, 1, -1, -1, 600, 240], "a sentence that is there twice counts twice; ten facts of a subject, in the style of the experiments"
    assert csv["distinct_questions"].tolist()[:2] == [1, 1]
    assert table(text).iloc[2].tolist() == ["zsRE", "training", "not run", "197,829", "not run", "147,905", "not run"]
    assert record["cuts"] == ["zsRE: not run, no files were given"] and str(folder) not in json.dumps(record)


@pytest.fixture(scope="module")
def table_3(folder):
    return run("table_3", folder, num_modified=4, **TINY, **POSITIONS)


def test_table_3_has_three_starts_and_each_block_beside_the_paper(folder, table_3):
    csv, text, record = table_3
    rows = load_rows("table_3", folder, num_modified=4, **TINY, **POSITIONS)
    assert list(csv) == ["evidences", "start", "position", "blocks", "num_modified", *with_errors(MEANS)]
    assert csv["start"].tolist() == ["RI", "RI", "pretrained", "pretrained", "FT", "FT"]
    assert csv["position"].tolist() == ["first", "last"] * 3 and csv["blocks"].tolist() == ["0", "1"] * 3
    assert_means(csv, rows, ["start", "blocks"])
    assert_whole("table_3", folder, record, TINY | POSITIONS)
    shown = table(text).set_index(["start", "position"])
    assert shown.loc[("FT", "last"), "A_M (%), paper"] == "82.50 (2.27)"
    assert shown.loc[("FT", "middle"), "A_M (%)"] == "not run" != shown.loc[("FT", "last"), "A_M (%)"]
    assert "standard error, 2 runs" in text


def test_rows_that_are_there_are_not_computed_again_and_one_that_fails_is_not_run(folder, table_3):
    there = [folder / "rows" / f"{one.key}.json" for one in list_runs("table_3", num_modified=4, **TINY, **POSITIONS)]
    stamps = {path: path.stat().st_mtime_ns for path in there}
    blocks = {"blocks": [0, 9, 1], "positions": ["first", "middle", "last"]}
    csv, _, record = run("table_3", folder, num_modified=4, **TINY, **blocks)
    assert len(stamps) == 12 and stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert csv.loc[csv["position"] == "middle", "runs"].tolist() == [0, 0, 0] and "6 rows that failed" in record["cuts"]
    pd.testing.assert_frame_equal(csv[csv["position"] != "middle"].reset_index(drop=True), table_3[0], check_dtype=False)


RADII = {"radii": {"0": [0.02]}, "model": "tiny", "start": "FT"}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("table_2", {"models": {"tiny": "BERT-Base"}, "positions": {"tiny": {"0": "first"}}, "settings": [{**RADII, "method": "FTM"}, {**RADII, "method": "FTM", "min_evidences": 9}]}),
        ("table_3", {"min_evidences": [0, 9], "starts": ["FT"], "blocks": [0], "positions": ["first"]}),
        ("table_4", {"min_evidences": [0, 9], "blocks": [0], "positions": ["first"], "mixes": [0.0], "free_mixes": [0.0], "radii": {"0": [0.02]}}),
    ],
)
def test_tables_2_to_4_come_once_for_each_choice_of_facts(folder, name, parameters):
    parameters = {"num_modified": 4, "heldout_seeds": [0], **TINY, "benchmark": "world", "style": "faithful"} | parameters  # the plain style has five evidences for each
    parameters = {key: value for key, value in parameters.items() if (name, key) not in (("table_2", "model"), ("table_3", "heldout_seeds"))}
    csv, text, _ = run(name, folder, **parameters)
    rows = load_rows(name, folder, **parameters)
    rows = rows[(rows["facts"] == "reported") & ((name == "table_3") | (rows["radius"] < math.inf))]
    ours = csv[csv["chosen_on"] == "reported"].drop_duplicates("evidences") if "chosen_on" in csv else csv
    ours = ours[ours["constraint"] != "none"] if "constraint" in ours else ours
    means = rows.groupby(rows["min_evidences"].fillna(0))["average_accuracy"].mean()
    assert ours.set_index("evidences")["average_accuracy"].to_dict() == pytest.approx(means.to_dict()) and len(means) == 2 == means.nunique()
    first, second = text.split("## Facts with at least 9 evidences\n")
    for part, mean in zip((first, second), means.sort_index()):
        lines = [line for line in part.splitlines() if f" {mean:.2f} (" in line]
        assert lines and all("first" in line for line in lines) and not any("evidences" in line for line in lines)


def test_figure_4_has_standard_deviations_over_numbers_of_modified_facts(folder):
    parameters = {"nums_modified": [2, 40], "blocks": ["all"], **TINY}
    csv, text, record = run("figure_4", folder, **parameters)
    assert list(csv) == ["blocks", "start", "num_modified", *with_errors([*MEANS, "steps"], "sd")]
    assert csv["num_modified"].tolist() == [2, 40] * 3 and csv["start"].tolist() == ["RI", "RI", "pretrained", "pretrained", "FT", "FT"]
    assert csv["steps"].tolist() == [10, 12] * 3, "a floor, then epochs"
    assert_means(csv, load_rows("figure_4", folder, **parameters), ["start", "num_modified"])
    assert_whole("figure_4", folder, record, parameters)
    assert "standard deviation, 2 runs" in text and "(figure_4.svg)" in text


def test_table_4_chooses_the_radius_on_reported_and_on_heldout_facts(folder):
    parameters = {"mixes": [0.0, 1.0], "free_mixes": [0.0, 2.0], "radii": {"0": [0.02], "1": [0.02]}, "wider": [0.2], "num_modified": 4, "heldout_seeds": [0], **TINY, **POSITIONS}
    csv, text, record = run("table_4", folder, **parameters)
    assert list(csv) == ["evidences", "chosen_on", "constraint", "method", "position", "blocks", "radius", *with_errors(CHOSEN)]
    assert csv["chosen_on"].tolist() == ["reported"] * 4 + ["held out"] * 4 + ["no choice"] * 4
    assert csv["method"].tolist() == ["FTM", "FTM", "FTA", "FTA"] * 2 + ["FTM", "FTM", "FTA, 2 for each", "FTA, 2 for each"]
    assert (csv["runs"] == 2).all()
    assert_whole("table_4", folder, record, parameters)
    shown = table(text)
    (paper,) = shown.loc[(shown["constraint"] == "linf") & (shown["method"] == "FTM") & (shown["position"] == "first"), "A_M (%), paper"]
    assert paper == "72.85 (0.51)" and (shown.loc[shown["constraint"] == "none", "radius, held out"] == "").all()
    same = {name: name for name in ("constraint", "method", "position")}
    assert_heldout_beside(shown, csv, same, {"radius": "radius", "mean (%)": "average_accuracy"})
    rows = load_rows("table_4", folder, **parameters)
    bounded = rows[rows["radius"] < math.inf].groupby("unmodified_per_modified")["radius"]
    assert bounded.agg(set).to_dict() == {0.0: {0.02}, 1.0: {0.02, 0.2}}, "only FTA goes further"
    csv["unmodified_per_modified"] = csv["method"].map({"FTM": 0.0, "FTA": 1.0, "FTA, 2 for each": 2.0})
    assert_chosen(csv, rows, ["unmodified_per_modified", "blocks"])


def assert_chosen(csv, rows, by, also=()):
    "Each line has the settings with the best mean on the facts that chose, and the reported means at them."
    group = [*by, *also, "radius"]
    rows = rows.assign(honest=(rows["modified_accuracy"] + rows["unmodified_accuracy_heldout"]) / 2)
    bounded = rows[rows["radius"] < math.inf]
    reported = rows[rows["facts"] == "reported"].groupby(group)["average_accuracy"].mean()
    judges = {
        "reported": bounded[bounded["facts"] == "reported"].groupby(group)["average_accuracy"].mean(),
        "held out": bounded[bounded["facts"] == "heldout"].groupby(group)["honest"].mean(),
        "no choice": reported,
    }
    for one in csv.to_dict("records"):
        setting = tuple(one[name] for name in group)
        rivals = judges[one["chosen_on"]].loc[setting[: len(by)]]
        assert one["chosen_on"] == "no choice" or math.isclose(judges[one["chosen_on"]][setting], rivals.max())
        assert math.isclose(one["average_accuracy"], reported[setting], abs_tol=1e-6)


def test_table_2_chooses_blocks_along_with_the_radius_and_shows_what_was_not_run(folder):
    radii = {"0": [0.02, 0.2], "1": [0.02, 0.1]}
    settings = [{"model": "tiny", "start": "pretrained", "method": "FTM", "radii": radii}, {"model": "tiny", "start": "FT", "method": "FTA", "radii": radii}]
    parameters = {"models": {"tiny": "BERT-Base"}, "positions": {"tiny": {"0": "first", "1": "last"}}, "settings": settings, "num_modified": 4}
    parameters |= {"heldout_seeds": [0]} | {name: value for name, value in TINY.items() if name != "model"}
    csv, text, record = run("table_2", folder, **parameters)
    assert list(csv) == ["chosen_on", "evidences", "model", "start", "method", "position", "blocks", "radius", *with_errors(CHOSEN)]
    assert csv["chosen_on"].tolist() == ["reported"] * 2 + ["held out"] * 2 and csv["method"].tolist() == ["FTM", "FTA"] * 2
    assert_whole("table_2", folder, record, parameters)
    rows = load_rows("table_2", folder, **parameters)
    rows["method"] = rows["unmodified_per_modified"].map({0.0: "FTM", 1.0: "FTA"})
    assert_chosen(csv, rows, ["start", "method"], ["blocks"])
    shown = table(text)
    assert_heldout_beside(shown, csv, {name: name for name in ("model", "start", "method")}, {"blocks": "blocks", "radius": "radius", "mean (%)": "average_accuracy"})
    ours = shown[shown["runs"] == "2"].set_index(["start", "method"])
    assert ours.loc[("FT", "FTA"), ["model", "A_M (%), paper", "position, paper"]].tolist() == ["BERT-Base", "74.31", "last"]
    assert set(shown.loc[shown["A_M (%)"] == "not run", "model"]) == {"BERT-Base", "BERT-Large", "ALBERT", "FaE"}


FIGURES = {  # parameters, the settings that tell bars apart, and the columns beside the means
    "figure_1": ({"models": {"tiny": "BERT-Base"}, "num_modified": 4}, ["model"], []),
    "figure_2": ({"models": {"tiny": "BERT-Base"}, "blocks": {"tiny": [0, 1]}, "nums_modified": {"tiny": [2, 4]}, "heldout_most": 2}, ["num_modified", "model", "blocks"], ["steps"]),
    "figure_3": ({"model": "tiny", "nums_modified": [2, 4], **POSITIONS}, ["num_modified", "blocks"], ["steps"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_bars_at_the_radius_chosen_both_ways(name, folder):
    more, by, columns = FIGURES[name]
    radii = {"0": [0.02, 0.2], "1": [0.02, 0.1]} if name == "figure_3" else [0.02, 0.2]
    parameters = {**TINY, "radii": radii, "heldout_seeds": [0]} | more
    parameters = {one: value for one, value in parameters.items() if one != "model" or "model" in more}
    csv, text, record = run(name, folder, **parameters)
    assert sorted(csv) == sorted({"chosen_on", "radius", *by, *with_errors([*CHOSEN, *columns])} | ({"position"} if name == "figure_3" else set()))
    bars, heldout = {"figure_1": (1, 1), "figure_2": (4, 2), "figure_3": (4, 4)}[name]
    assert csv["chosen_on"].tolist() == ["reported"] * bars + ["held out"] * heldout and (csv["runs"] == 2).all()
    assert_chosen(csv, load_rows(name, folder, **parameters), by)
    assert_whole(name, folder, record, parameters)
    assert f"({name}.svg)" in text
    on = {"|M|" if column == "num_modified" else column: column for column in by}
    assert_heldout_beside(table(text).astype({"|M|": int} if "|M|" in on else {}), csv, on, {"radius": "radius", "mean (%)": "average_accuracy"})


def test_baselines_say_how_much_modified_facts_changed(folder):
    parameters = {"methods": ["edit", "uniform"], "num_modified": 4, **TINY}
    csv, text, record = run("baselines", folder, **parameters)
    rows = load_rows("baselines", folder, **parameters).groupby("method")[["modified_accuracy", "modified_accuracy_before"]].mean()
    change = rows["modified_accuracy"] - rows["modified_accuracy_before"]
    assert csv["method"].tolist() == ["FTM", "uniform", "retrain"] and csv["runs"].tolist() == [2, 2, 0]
    assert csv["modified_change"].tolist()[:2] == pytest.approx(change[["edit", "uniform"]].tolist())
    shown = table(text).set_index("method")
    assert shown.loc["retrain", "A_M (%)"] == "not run" and shown.loc["uniform", "A_M (%), paper"] == "50.00"
    assert_whole("baselines", folder, record, parameters, pictures=False)


def test_the_control_trains_equally_long_for_every_number_of_facts(folder):
    parameters = {"nums_modified": [2, 40], "radii": [0.2, math.inf], "steps": 11, "blocks": ["all"], **TINY}
    csv, _, record = run("equal_steps", folder, **parameters)
    assert csv["steps"].tolist() == [10, 12, 11, 11] * 2 and csv["num_modified"].tolist() == [2, 40] * 4
    assert csv["radius"].tolist() == [0.2] * 4 + [math.inf] * 4 and csv["rule"].nunique() == 2
    assert_whole("equal_steps", folder, record, {**TINY, "steps": 11}, pictures=True)


def test_norms_are_compared_along_their_own_radii(folder):
    parameters = {"radii": {"linf": [0.02, 0.2], "l2": [0.5, 2.0]}, "blocks": [1], "positions": ["last"], "num_modified": 4, "heldout_seeds": [0], **TINY}
    csv, text, record = run("norms", folder, **parameters)
    assert csv[["norm", "radius"]].values.tolist() == [["linf", 0.02], ["linf", 0.2], ["l2", 0.5], ["l2", 2.0]]
    assert_means(csv, load_rows("norms", folder, **parameters).query("facts == 'reported'"), ["norm", "radius"])
    rows = load_rows("norms", folder, **parameters).query("facts == 'reported' and norm == 'l2'").set_index("radius")["average_accuracy"]
    means = rows.groupby("radius").mean()
    shown = table(text).set_index(["norm", "radius"])
    best = f"{means.idxmax():g}"
    assert float(shown.loc[("l2", best), "spread over seeds"]) == pytest.approx(rows[means.idxmax()].std(), abs=0.01)
    assert float(shown.loc[("l2", best), "loss next to it"]) == pytest.approx(means.max() - means.min(), abs=0.01)
    assert_whole("norms", folder, record, parameters, pictures=True)


def test_learning_rates_are_compared_on_heldout_facts_only(folder):
    parameters = {"models": ["tiny"], "starts": ["FT"], "blocks": [1], "learning_rates": [0.01, 0.03], "used": 0.03, "radii": [0.02, 0.2], "num_modified": 4}
    parameters |= {"heldout_seeds": [0, 1]} | {name: value for name, value in TINY.items() if name not in ("model", "learning_rate", "seeds")}
    csv, text, record = run("learning_rates", folder, **parameters)
    rows = load_rows("learning_rates", folder, **parameters)
    assert set(rows["facts"]) == {"heldout"} and csv["learning_rate"].tolist() == [0.01, 0.03]
    means = ((rows["modified_accuracy"] + rows["unmodified_accuracy_heldout"]) / 2).groupby([rows["learning_rate"], rows["radius"]]).mean()
    best = means.groupby("learning_rate").max()
    assert csv["average_accuracy"].tolist() == pytest.approx(best.tolist())
    assert csv["behind_the_best"].tolist() == pytest.approx((best.max() - best).tolist(), abs=1e-8)
    assert table(text)["in use"].tolist() == ["", "yes"]
    assert record["seeds"] == [0, 1]


def test_the_same_seeds_give_the_same_bytes_here_and_in_a_kernel(folder, tmp_path):
    parameters = {"radii": {"0": [0.02]}, "num_modified": 4, **TINY}
    written = []
    for number, execute in enumerate((execute_here, execute_in_kernel)):
        store = tmp_path / str(number)
        store.mkdir()
        (store / "cache").symlink_to(folder / "rows" / "cache")  # the models; rows are computed again
        run("tradeoff", tmp_path, execute, **parameters, places={"store": str(store), "output": str(tmp_path / "figures")})
        written.append([(tmp_path / "figures" / f"tradeoff.{kind}").read_bytes() for kind in ("csv", "svg", "png", "md")])
    assert len(list((tmp_path / "1").glob("*.json"))) == 4 and written[0] == written[1]


def test_the_tradeoff_has_a_curve_for_each_choice_of_blocks(folder):
    parameters = {"radii": {"0": [0.02], "all": [0.02, 0.2]}, "num_modified": 4, **TINY}
    csv, text, record = run("tradeoff", folder, **parameters)
    assert list(csv) == ["position", "blocks", "radius", *with_errors(MEANS)]
    assert csv["position"].tolist() == ["first"] * 2 + ["all"] * 3 and csv["radius"].tolist() == [0.02, math.inf, 0.02, 0.2, math.inf]
    assert_means(csv, load_rows("tradeoff", folder, **parameters), ["blocks", "radius"])
    assert_whole("tradeoff", folder, record, parameters)
    assert "(tradeoff.svg)" in text


def assert_line_means(csv, rows, columns):
    "A line has the means of its rows."
    assert len(rows) == 2 and csv["runs"] == 2
    assert [csv[name] for name in columns] == pytest.approx(rows[columns].mean().tolist(), abs=1e-6)


def test_table_5_has_the_groups_of_fae_and_a_second_point_of_awt_beside_the_paper(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(fae_starts, "train_fae", lambda *given: train_fae(*given[:2], replace(given[2], finetuning=replace(given[2].finetuning, steps=60))))
    shutil.copytree(tiny, tmp_path / "rows" / "cache" / tiny.name)  # a store of its own: its FaE is trained too little for others
    parameters = {"groups": ["none", "AWT"], "radii": [0.02, 0.2], "with_tables": False, "others": [], "num_modified": 4, "heldout_seeds": [0]}
    parameters |= {name: value for name, value in TINY.items() if not name.startswith("finetuning")}
    csv, text, record = run("table_5", tmp_path, **parameters)
    columns = ["modified_accuracy", "unmodified_accuracy", "unmodified_change", "modified_entity_accuracy", "modified_null_probability", "inserted"]
    assert list(csv) == ["chosen_on", "line", "radius", *with_errors(columns)]
    assert csv["chosen_on"].tolist() == ["reported"] * 2 + ["held out"] * 2 + ["reported"] and csv["line"].tolist()[:4] == ["none", "AWT"] * 2
    rows = load_rows("table_5", tmp_path, **parameters)
    rows["unmodified_change"] = rows["unmodified_accuracy"] - rows["unmodified_accuracy_before"]
    reported, best = rows[rows["facts"] == "reported"], csv.iloc[1]["radius"]
    assert len(reported) == 6 and reported["radius"].isna().sum() == 2, "without training there is no radius"
    for line in csv.head(4).to_dict("records"):
        chosen = reported[reported["group"] == line["line"]]
        assert_line_means(line, chosen[chosen["radius"].isna() if line["line"] == "none" else chosen["radius"] == line["radius"]], columns)
    means = reported[reported["group"] == "AWT"].groupby("radius")["average_accuracy"].mean()
    assert means[best] == means.max()
    last = csv.iloc[4].to_dict()
    assert last["line"] == "AWT, next radius" and (last["runs"] == 0 if best == 0.2 else last["radius"] == 0.2)
    if best == 0.02:
        assert_line_means(last, reported[reported["radius"] == 0.2], columns)
    assert_heldout_beside(table(text), csv, {"trained": "line"}, {"A_M (%)": "modified_accuracy", "A_F\\S (%)": "unmodified_accuracy"})
    shown = table(text).set_index("trained")
    assert shown.loc["AWT", ["A_M (%), paper", "A_F\\S (%), paper"]].tolist() == ["75.00", "57.38"]
    assert shown.loc["AWT, next radius", "A_M (%), paper"] == "85.00"
    assert set(shown.index) >= {"all", "last+AWT"} and shown.loc["all", "A_M (%)"] == "not run"
    assert_whole("table_5", tmp_path, record, parameters)


def test_table_6_has_thresholds_beside_fine_tuning_and_says_which_labels_were_lost(folder):
    parameters = {"blocks": [0], "radii": [0.02], "quantiles": [0.0, 0.5, 1.0], "remembered": ["modified", "all"], "num_modified": 4, **TINY}
    csv, text, record = run("table_6", folder, **parameters)
    neighbors = ["lost_sharing", "lost_sharing_se", "lost_others", "lost_others_se", "epsilon_used", "within_epsilon"]
    assert list(csv) == ["start", "method", "setting", *with_errors(MEANS), *neighbors] and set(csv["start"]) == {"pretrained"}
    thresholds = [f"epsilon at quantile {quantile}" for quantile in ("0", "0.5", "1")]
    assert csv["setting"].tolist() == [*thresholds, "entire training set, nearest", "block 0, radius 0.02"]
    assert csv["method"].tolist() == ["kNN-LM"] * 4 + ["FTM"] and csv[neighbors].iloc[4].isna().all()
    rows = load_rows("table_6", folder, **parameters)
    for line, quantile in zip(csv.to_dict("records"), (0.0, 0.5, 1.0)):
        assert_line_means(line, rows[rows["epsilon_quantile"] == quantile], [*MEANS, "lost_sharing", "lost_others", "epsilon_used", "within_epsilon"])
    assert_line_means(csv.iloc[3], rows[rows["remembered"] == "all"], MEANS)
    assert_line_means(csv.iloc[4], rows[rows["method"] == "edit"], MEANS)
    assert csv["within_epsilon"].head(4).is_monotonic_increasing and csv["within_epsilon"].iloc[0] == 0 and csv["within_epsilon"].iloc[3] == 100
    ours, theirs = (shown.set_index("setting") for shown in tables(text))
    assert list(ours.index) == csv["setting"].tolist() and not [name for name in ours if "paper" in name]
    assert theirs.loc["epsilon 0.5", "A_F\\S (%), paper"] == "28.63" and "A_M (%)" not in theirs
    lost = [f"column {column} of 9" for column in (2, 3, 4)]
    assert theirs.loc[lost, "A_M (%), paper"].tolist() == ["3.13", "6.25", "9.38"]
    (mark,) = re.findall(r"^\[\^(\d+)\]: .*label lost", text, flags=re.MULTILINE)
    assert {line.split(" | ")[1] for line in text.splitlines() if line.startswith("|") and f"[^{mark}]" in line} == set(lost)
    assert theirs.loc["block 0, radius 0.004", "A_M (%), paper"] == "71.25"
    assert_whole("table_6", folder, record, parameters, pictures=True)


def test_table_6_takes_several_starts(folder):
    csv, text, _ = run("table_6", folder, **{"blocks": [0], "radii": [0.02], "quantiles": [0.0, 1.0], "num_modified": 4, **TINY, "starts": ["pretrained", "RI"]})
    assert csv["start"].tolist() == ["pretrained"] * 3 + ["RI"] * 3 and csv["setting"].tolist()[:3] == csv["setting"].tolist()[3:]
    assert csv.loc[csv["start"] == "RI", "unmodified_accuracy"].max() < csv["unmodified_accuracy"].max()
    assert "on pretrained and on RI" in text


@pytest.mark.parametrize("least", [0, 2])
def test_the_gain_of_a_ball_is_paired_and_its_radius_chosen_on_held_out_facts(folder, least):
    parameters = {"min_evidences": [least], "radii": {"0": [0.002, 0.02], "1": [0.02]}, "positions": {"0": "first", "1": "last"}, "num_modified": 4, **TINY}
    csv, text, record = run("when_it_pays", folder, **parameters)
    rows = load_rows("when_it_pays", folder, **parameters)
    assert csv["evidences"].tolist() == [least] * 2 and csv["position"].tolist() == ["first", "last"]
    for line, block in zip(csv.to_dict("records"), ("0", "1")):
        reported = rows[(rows["facts"] == "reported") & (rows["blocks"] == block)].set_index("seed")
        free, ball = (reported[reported["radius"] == radius]["average_accuracy"] for radius in (math.inf, line["radius"]))
        assert line["gain"] == pytest.approx((ball - free).mean()) and line["average_accuracy_free"] == pytest.approx(free.mean())
        assert line["gain_se"] == pytest.approx((ball - free).sem())
        free = reported[reported["radius"] == math.inf]
        kept = pd.Series({seed: read_off(curve[curve["radius"] < math.inf], free.loc[seed, "modified_accuracy"]) for seed, curve in reported.groupby("seed")}, dtype=float)
        assert line["reached"] == kept.notna().sum()
        assert line["matched"] == pytest.approx((kept - free["unmodified_accuracy"]).mean(), nan_ok=True)
    heldout = rows[(rows["facts"] == "heldout") & (rows["blocks"] == "0")]
    means = (heldout["modified_accuracy"] + heldout["unmodified_accuracy_heldout"]).groupby(heldout["radius"]).mean()
    assert csv["radius"][0] == means.idxmax()
    assert f"at the edge of those tried: blocks 0, {csv['radius'][0]:g}" in text  # of two radii either is
    assert_whole("when_it_pays", folder, record, parameters, pictures=True)


@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        ("when_it_pays", "when_it_pays_rates", {"min_evidences": [0], "positions": {"0": "first"}, "num_modified": 4}),
        ("figure_3", "questions_rates", {"blocks": [0], "positions": ["first"], "nums_modified": [4]}),
    ],
)
def test_no_constraint_has_the_learning_rate_that_held_out_facts_choose(folder, name, file, settings):
    parameters = settings | {"radii": {"0": [0.002, 0.02]}, "free_learning_rates": [0.01], **TINY}
    csv, _, _ = run(name, folder, **parameters)
    if name == "figure_3":
        csv = csv[csv["chosen_on"] == "held out"].reset_index(drop=True)
    own = pd.read_csv(folder / "figures" / f"{file}.csv")
    rows = load_rows(name, folder, **parameters)
    free = rows[rows["radius"] == math.inf]
    heldout = free[free["facts"] == "heldout"]
    means = (heldout["modified_accuracy"] + heldout["unmodified_accuracy_heldout"]).groupby(heldout["learning_rate"]).mean()
    assert len(means) == 2 and own["learning_rate"].tolist() == [means.idxmax()]
    reported = rows[rows["facts"] == "reported"].set_index("seed")
    assert free[free["facts"] == "reported"].groupby("learning_rate")["average_accuracy"].mean().idxmax() != means.idxmax()  # so it matters who chooses
    ball = reported[(reported["radius"] == csv["radius"][0]) & (reported["learning_rate"] == TINY["learning_rate"])]["average_accuracy"]
    without = reported[(reported["radius"] == math.inf) & (reported["learning_rate"] == own["learning_rate"][0])]["average_accuracy"]
    assert own["gain"][0] == pytest.approx((ball - without).mean()) and own["gain_se"][0] == pytest.approx((ball - without).sem())


def test_the_gain_is_measured_at_every_place_of_an_axis_and_axes_share_rows_where_they_meet(folder):
    axes = {"evidence": {"any": {}, "at least 2": {"min_evidences": 2}}, "FT": {"60 steps": {}, "30 steps": {"finetuning_steps": 30}}}
    parameters = {"axes": axes, "block": 1, "radii": [0.02], "num_modified": 4, **TINY}
    csv, text, record = run("gain_axes", folder, **parameters)
    rows = load_rows("gain_axes", folder, **parameters)
    assert csv["axis"].tolist() == ["evidence"] * 2 + ["FT"] * 2 and csv["place"].tolist() == ["any", "at least 2", "60 steps", "30 steps"]
    assert len(rows) == 3 * len(rows[rows["finetuning_steps"] == 30]) and (csv.loc[0, "gain"], csv.loc[0, "radius"]) == (csv.loc[2, "gain"], csv.loc[2, "radius"])
    here = rows[(rows["facts"] == "reported") & (rows["finetuning_steps"] == 30)].set_index("seed")
    free, ball = (here[here["radius"] == radius] for radius in (math.inf, csv["radius"][3]))
    gain = ball["average_accuracy"] - free["average_accuracy"]
    assert csv["gain"][3] == pytest.approx(gain.mean()) and csv["gain_se"][3] == pytest.approx(gain.sem())
    assert csv["unmodified_accuracy_before"][3] == pytest.approx(ball["unmodified_accuracy_before"].mean())
    assert_whole("gain_axes", folder, record, parameters, pictures=True)


def test_the_runs_of_a_notebook_can_be_listed_without_computing_and_artefacts_share_rows():
    names = ("table_2", "table_3", "table_4", "figure_1", "figure_2", "figure_3", "figure_4", "tradeoff", "baselines", "equal_steps", "norms", "learning_rates")
    runs = {name: {one.key for one in list_runs(name)} for name in names}
    assert all(runs.values())
    assert runs["table_3"] & runs["tradeoff"] & runs["table_4"] and runs["figure_4"] & runs["tradeoff"] & runs["equal_steps"]
    for name in ("table_4", "figure_1", "figure_2", "tradeoff", "norms", "learning_rates"):
        assert runs["table_2"] & runs[name], name


def test_settings_that_make_no_row_are_refused_before_any_is_computed():
    with pytest.raises(ValueError, match="a start must be .*not .ft."):
        list_runs("tradeoff", start="ft")
    with pytest.raises(ValueError, match="positions must be as many as blocks, not 1 for 3"):
        list_runs("table_3", positions=["first"])
    for name, given in {"tradeoff": {"radii": {"2": [0.1]}}, "radius_choice": {"positions": {}}, "when_it_pays": {"radii": {"2": [0.1]}}, "checkpoints": {"fta_radii": {"2": 0.1}}}.items():
        with pytest.raises(ValueError, match="positions has no name for block"):
            list_runs(name, **given)
    with pytest.raises(ValueError, match="gain_axes has no parameter 'num_modifed'"):
        list_runs("gain_axes", axes={"facts": {"few": {"num_modifed": 8}}})
    with pytest.raises(ValueError, match="not enough values"):
        list_runs("constraints", between=[20])
    with pytest.raises(KeyError, match="none"):
        list_runs("table_6", remembered=["none"])


def test_a_radius_is_chosen_both_ways():
    from modmem.paper import choose_both_ways

    found = [(0.1, "reported", 60.0), (0.2, "reported", 50.0), (0.1, "heldout", 40.0), (0.2, "heldout", 70.0)]
    rows = pd.DataFrame(found, columns=["radius", "facts", "average_accuracy"]).assign(seed=0, position="last")
    for name in ("modified_accuracy", "unmodified_accuracy", "unmodified_accuracy_heldout"):
        rows[name] = rows["average_accuracy"]
    assert choose_both_ways(rows, ["position"])[["chosen_on", "radius", "facts"]].values.tolist() == [["reported", 0.1, "reported"], ["held out", 0.2, "reported"]]


def test_an_axis_may_move_whatever_is_a_parameter():
    runs = list_runs("gain_axes", axes={"block": {"first": {"block": 0}, "last": {"radii": [0.05]}}})
    assert {(run.method.blocks, run.method.radius) for run in runs} == {(0, 0.01), (0, 0.02), (3, 0.05), (0, math.inf), (3, math.inf)}

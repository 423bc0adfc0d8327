"""The transcribed numbers obey the paper's own arithmetic, so that a wrong digit is found without the paper at hand."""
import math
from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "figures" / "published"
ROUNDING = 0.005 + 1e-9  # the paper prints two decimals
TEXT = pd.read_csv(FOLDER / "text.csv", dtype={"blocks": str})


def read(name):
    return pd.read_csv(FOLDER / f"{name}.csv", dtype={"blocks": str})


def is_share_of(value, count):
    "Could this percentage be a number of things out of `count`?"
    return abs(value - round(value * count / 100) * 100 / count) <= ROUNDING


def said(place, quantity, **settings):
    "The values that the text gives there."
    rows = TEXT[(TEXT["place"] == place) & (TEXT["quantity"] == quantity)]
    for column, value in settings.items():
        rows = rows[rows[column] == value]
    return rows["value"].tolist()


def test_there_is_a_file_for_each_table_and_none_for_a_figure():
    assert {path.name for path in FOLDER.iterdir()} == {*(f"table_{n}.csv" for n in range(1, 7)), "text.csv", "README.md"}


@pytest.mark.parametrize("name", [f"table_{number}" for number in range(1, 7)])
def test_a_setting_stands_once_and_percentages_are_percentages(name):
    table = read(name)
    values = [column for column in table if column.endswith(("_accuracy", "_se", "_change")) or column in ("questions", "facts")]
    assert not table[values].isna().any().any()
    assert not table.drop(columns=[*values, "note"]).duplicated().any()
    accuracies = table[[column for column in values if column.endswith("_accuracy")]]
    assert ((accuracies >= 0) & (accuracies <= 100)).all().all()


def test_table_1_counts_what_the_question_split_allows():
    counts = read("table_1").set_index(["benchmark", "side"])
    trex, zsre = counts.loc["T-REx"], counts.loc["zsRE"]
    assert trex.loc["test", "questions"] == trex.loc["test", "facts"] == trex.loc["training", "facts"]  # one template a fact
    assert zsre.loc["test", "facts"] <= zsre.loc["test", "questions"] <= 2 * zsre.loc["test", "facts"]  # one or two questions
    assert zsre.loc["test", "facts"] < zsre.loc["training", "facts"] <= zsre.loc["training", "questions"]  # each keeps one
    assert counts["questions"].sum() == 1_573_962 and counts["facts"].sum() == 263_139  # check sums


def test_table_2_means_are_means_but_for_the_slip():
    table = read("table_2")
    mean = (table["modified_accuracy"] + table["unmodified_accuracy"]) / 2
    wrong = (mean - table["average_accuracy"]).abs() > ROUNDING
    assert wrong.tolist() == [True] + 6 * [False]
    assert table.loc[0, "average_accuracy"] - mean[0] == pytest.approx(3.0)
    assert table.loc[0, "note"].startswith("slip:") and f"{mean[0]:.2f}" in table.loc[0, "note"]


def test_table_2_shares_rows_with_table_5_and_with_the_caption_of_table_6():
    table, components = read("table_2").set_index("model"), read("table_5").set_index("blocks")
    for column, caption in (("modified_accuracy", [15.63, 58.13, 71.25]), ("unmodified_accuracy", [27.78, 23.51, 17.69])):
        assert table.loc["FaE", column] == components.loc["AWT", column]
        assert said("Table 6 caption", column) == caption
        assert table.iloc[0][column] == caption[-1]


def test_a_mean_of_five_runs_of_32_facts_is_a_multiple_of_1_in_160():
    assert all(is_share_of(value, 160) for value in read("table_3")["modified_accuracy"])
    assert all(is_share_of(value, 160) for value in said("Table 6 caption", "modified_accuracy"))
    table = read("table_2")
    doubtful = [not is_share_of(value, 160) for value in table["modified_accuracy"]]
    assert table["note"].fillna("").str.contains("not the mean of 5 runs").tolist() == doubtful
    assert sum(doubtful) == 4


def test_table_3_standard_errors_divide_by_n_and_not_by_n_minus_1():
    "5 runs with k right of 32: D = 5 sum(k^2) - (sum k)^2 is whole and settles each digit; the error is sqrt(D / 5 / 5 / divisor)."

    def fits(mean, error, divisor):
        total = round(mean * 160 / 100)
        low, high = (25 * divisor * ((error + off) * 32 / 100) ** 2 for off in (-ROUNDING, ROUNDING))
        return any((spread + total**2) % 5 == 0 for spread in range(math.ceil(low), math.floor(high) + 1))

    pairs = read("table_3")[["modified_accuracy", "modified_accuracy_se"]].to_numpy()
    assert all(fits(*pair, divisor=5) for pair in pairs)
    assert sum(fits(*pair, divisor=4) for pair in pairs) == 3


def test_table_4_looks_like_three_runs_of_512_facts():
    values = read("table_4")["modified_accuracy"]
    assert all(is_share_of(value, 3 * 512) for value in values)
    assert sum(not is_share_of(value, 5 * 512) for value in values) == 4


def test_table_4_contradicts_the_text_where_the_notes_say_so():
    table = read("table_4")
    mean = ((table["modified_accuracy"] + table["unmodified_accuracy"]) / 2).set_axis(table["method"] + " " + table["blocks"])
    assert mean.idxmax() == "FTM 0" and mean.max() == pytest.approx(46.96, abs=0.006)
    assert mean[mean.index.str.startswith("FTA")].max() == pytest.approx(45.91, abs=0.006)
    assert mean["FTM 11"] == pytest.approx(42.29, abs=0.006) and mean["FTM 5"] == pytest.approx(43.64, abs=0.006)
    assert table.loc[table["note"].notna(), ["method", "blocks"]].agg(" ".join, axis=1).tolist() == ["FTM 0", "FTM 11"]


@pytest.mark.parametrize("name", ["table_5", "table_6"])
def test_tables_5_and_6_are_single_runs(name):
    assert all(is_share_of(value, 32) for value in read(name)["modified_accuracy"])


def test_table_5_changes_are_differences_from_the_unedited_model():
    table = read("table_5").set_index("blocks")
    before = table.loc["none", "unmodified_accuracy"]
    assert [before] == said("Section 4.4", "accuracy", model="FaE")
    assert (table["unmodified_accuracy"] - before - table["unmodified_change"]).abs().max() < 1e-9


def test_table_6_trades_one_accuracy_for_the_other_and_marks_the_lost_labels():
    table = read("table_6")
    assert table["column"].tolist() == list(range(1, 10))
    assert table["modified_accuracy"].is_monotonic_increasing and table["unmodified_accuracy"].is_monotonic_decreasing
    assert table["epsilon"].dropna().tolist() == [0.5, 6, 6.5, 7, 8, 9] and table["epsilon"].dropna().is_monotonic_increasing
    assert (table["epsilon"].isna() == table["note"].str.startswith("label lost")).all()


def test_the_text_agrees_with_the_tables_where_it_repeats_them():
    components = read("table_5").set_index("blocks")
    assert said("Section 4.6", "modified_accuracy", blocks="none", start="FT") == [components.loc["none", "modified_accuracy"]]
    assert said("Section 4.6", "modified_accuracy", blocks="AWT")[0] == components.loc["AWT", "modified_accuracy"]
    assert said("Section 4.6", "unmodified_change", blocks="AWT")[0] == components.loc["AWT", "unmodified_change"]


def test_the_text_disagrees_with_table_2_about_bert_large():
    row = read("table_2").set_index("model").loc["BERT-Large"]
    (after_ft,) = said("Section 4.4", "accuracy", model="BERT-Large")
    (change,) = said("Section 4.6", "unmodified_change", model="BERT-Large")
    assert said("Section 4.6", "modified_accuracy", model="BERT-Large") == [77.50] != [row["modified_accuracy"]]
    assert row["unmodified_accuracy"] - after_ft == pytest.approx(-6.69) and f"{after_ft - row['unmodified_accuracy']:.2f}" in row["note"]
    assert row["unmodified_accuracy"] - after_ft < change


def test_what_was_known_before_and_the_size_of_an_epoch():
    known = {model: said("Section 4.4", "accuracy", model=model) for model in ("BERT-Base", "BERT-Large", "ALBERT", "FaE")}
    assert known == {"BERT-Base": [50.50], "BERT-Large": [51.39], "ALBERT": [47.96], "FaE": [60.38]}
    assert said("Section 4.5.1", "accuracy") == [28.85]
    (iterations,), (epochs,) = said("Appendix B", "iterations_per_epoch"), said("Appendix B", "epochs")
    assert iterations * 128 / 512 == 28  # evidences a fact
    assert 0.1 < epochs * iterations * 128 / 1_282_567 < 0.12  # "around 10%" of the unmodified evidences

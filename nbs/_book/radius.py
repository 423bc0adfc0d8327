"""What the page to play with the radius knows: curves of committed rows, and the paper's values beside them."""
import json
import math
from pathlib import Path

import pandas as pd
from names import FIGURES

NOT_SETTINGS = ["seed", "radius", "steps"]  # a curve runs over radii, a point over seeds; steps follow from epochs
FEWEST = 3  # radii of a curve, apart from none
ACCURACIES = {"modified_accuracy": "A_M", "unmodified_accuracy": "A_F", "average_accuracy": "mean"}
WORLDS = {"world": "synthetic world", "world-questions": "synthetic world, questions", "trex": "real T-REx", "zsre": "real zsRE"}
IN_THE_PAPER = {"base": "BERT-Base", "large": "BERT-Large", "albert": "ALBERT"}  # another model stands beside BERT-Base
OTHERWISE = {"num_subjects": "{:g} people", "style_contexts": "{} sentences around", "finetuning_steps": "FT of {:g} steps"}  # said where it is not as usual
ALSO_IN_THE_PAPER = {"world": "T-REx", "trex": "T-REx"}


def name_settings(rows: pd.DataFrame) -> list[str]:
    "Name the columns that say what a row is, which stand before those that say what came out."
    first = min(rows.columns.get_loc(name) for name in ACCURACIES)
    return [name for name in rows.columns[1:first] if name not in NOT_SETTINGS]


def describe(row: pd.Series, last: int, usual: pd.Series) -> dict[str, str]:
    "Say what a curve is in the words of the page's menus; what most rows have is not said."
    block, rehearsed = row["blocks"], row["unmodified_per_modified"]
    place = {"all": "all blocks", "0": "first block (0)", str(last): f"last block ({last})"}.get(block, f"block {block}")
    apart = [how.format(row[name]) for name, how in OTHERWISE.items() if name in row and pd.notna(row[name]) and row[name] != usual[name]]
    return {
        "facts": ", ".join([WORLDS.get(row["benchmark"], row["benchmark"]), *apart]),
        "model": row["model"],
        "start": row["start"],
        "batches": f"FTA: {rehearsed:g} unmodified to 1 modified" if rehearsed else "FTM: modified facts alone",
        "evidences": f"at least {row['min_evidences']:g} a fact" if row.get("min_evidences", math.nan) > 0 else "any number a fact",
        "|M|": f"{row['num_modified']}",
        "norm": row["norm"],
        "blocks": place,
    }


def find_published(row: pd.Series, last: int) -> list[dict]:
    "Find what the paper prints for a curve's start, batches, place and number of facts: with radii that it does not always say."
    model, benchmark = IN_THE_PAPER.get(row["model"], "BERT-Base"), ALSO_IN_THE_PAPER.get(row["benchmark"])
    block, method = row["blocks"], "FTA" if row["unmodified_per_modified"] else "FTM"
    position = {"all": "all", "0": "first", str(last): "last"}.get(block, "middle")
    if row.get("min_evidences", math.nan) > 0:  # facts drawn otherwise than the paper's
        return []
    found, best = [], "the best one, not printed"
    for name, said in (("table_2", best), ("table_3", "none"), ("table_4", best)) if row["norm"] == "linf" else (("table_3", "none"),):
        table = pd.read_csv(FIGURES / "published" / f"{name}.csv")
        wanted = {"benchmark": benchmark, "model": model, "start": row["start"], "method": method, "position": position, "num_modified": row["num_modified"]}
        for _, line in table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)].iterrows():
            found.append({"where": f"Table {name[-1]}", "radius": said, "A_M": line["modified_accuracy"], "A_F": line["unmodified_accuracy"]})
    text = pd.read_csv(FIGURES / "published" / "text.csv")
    wanted = {"benchmark": benchmark, "model": model, "start": row["start"], "method": method, "blocks": "0", "num_modified": row["num_modified"]}
    text = text[(text[list(wanted)].astype(str) == pd.Series({k: str(v) if k != "num_modified" else f"{float(v)}" for k, v in wanted.items()})).all(axis=1)]
    for (place, radius), lines in text[text["radius"].notna()].groupby(["place", "radius"]):
        values = lines.set_index("quantity")["value"].astype(float)
        if position == "first" and row["norm"] == "linf" and {"modified_accuracy", "unmodified_accuracy"} <= set(values.index):
            found.append({"where": place, "radius": f"{radius:g}", "A_M": values["modified_accuracy"], "A_F": values["unmodified_accuracy"]})
    return [{**one, "of": f"{model} on {benchmark}", "mean": round((one["A_M"] + one["A_F"]) / 2, 2)} for one in found]


def make_point(radius: float, rows: pd.DataFrame) -> dict:
    "Put the rows of one radius together: means, standard errors over seeds, and each row."
    rows = rows.sort_values("seed")
    point = {"radius": radius if math.isfinite(radius) else None, "rows": []}
    for column, name in ACCURACIES.items():
        point[name] = round(rows[column].mean(), 2)
        point[f"{name}_se"] = round(rows[column].sem(), 2) if len(rows) > 1 else None
    for _, row in rows.iterrows():
        point["rows"].append([row["key"], int(row["seed"]), *(round(row[column], 2) for column in ACCURACIES)])
    return point


def read_curves(path: Path) -> list[dict]:  # choices, before, points, paper
    "Find the curves along the radius among the rows of reported facts."
    rows = pd.read_csv(path, dtype={"blocks": str}, low_memory=False)
    rows = rows[(rows["method"] == "edit") & (rows["facts"] == "reported") & (rows["status"] == "done")]
    usual = rows.reindex(columns=list(OTHERWISE)).mode().iloc[0]
    curves, single = [], pd.to_numeric(rows["blocks"], errors="coerce")
    for _, group in rows.groupby(name_settings(rows), dropna=False):
        last = single[rows["model"] == group["model"].iloc[0]].max()
        first, last = group.iloc[0], int(last) if last == last else 0
        if group.loc[group["radius"] < math.inf, "radius"].nunique() >= FEWEST:
            points = [make_point(radius, some) for radius, some in group.groupby("radius")]
            before = round(group["unmodified_accuracy_before"].mean(), 2)
            curves.append({"choices": describe(first, last, usual), "file": f"figures/{path.parent.name}/rows.csv", "before": before, "points": points, "paper": find_published(first, last)})
    return curves


def write_curves(target: Path) -> int:  # curves
    "Write all curves of all scales as a script, since a page opened from a file can read nothing else."
    curves = [curve for path in sorted(FIGURES.glob("*/rows.csv")) for curve in read_curves(path)]
    told = [tuple(curve["choices"].values()) for curve in curves]
    for number, curve in enumerate(curves):
        if told.count(told[number]) > 1:  # other settings differ: each gets a number, so that none is hidden
            curve["choices"] |= {"evidences": f"{curve['choices']['evidences']} ({told[: number + 1].count(told[number])})"}
    order = {name: number for number, name in enumerate(WORLDS.values())}
    curves.sort(key=lambda curve: (order.get(curve["choices"]["facts"], len(order)), -len(curve["points"]), curve["choices"]["blocks"]))
    target.write_text(f"window.CURVES = {json.dumps(curves, allow_nan=False, separators=(',', ':'))};\n", encoding="utf-8")
    return len(curves)

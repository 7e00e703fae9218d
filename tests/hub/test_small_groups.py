"""What `subgroups.csv` tells of one or two patients stays at home."""

import csv

import pytest

from retfound_hf import RetFoundError
from retfound_hf.hub.contents import read_contents
from retfound_hf.hub.publish import publish, staged

HEADER = "column,group,rows,metric,value,low,high,n,undefined,p_value"
ROWS = [
    "patient_id,p017,4,auroc,0.9,,,1,0,",
    "patient_id,p018,4,auroc,,,,1,1,",
    "camera,A,40,auroc,0.8,0.7,0.9,10,0,",
    "camera,B,36,auroc,0.7,0.6,0.8,9,0,",
    "camera,B2,80,auroc,0.6,0.5,0.7,20,0,",
    "camera,A - B,156,auroc,0.1,0.0,0.2,39,0,0.04",
    "camera,A - B2,156,auroc,0.2,0.1,0.3,39,0,0.04",
]


def published_groups(place) -> dict[str, list[str]]:
    with staged(read_contents(place), "org/name") as stage:
        return {
            path.relative_to(stage).as_posix(): [row["group"] for row in csv.DictReader(path.open(encoding="utf-8"))]
            for path in stage.rglob("subgroups.csv")
        }


@pytest.mark.parametrize("name", ["subgroups.csv", "validation/subgroups.csv"])
def test_small_groups_and_gaps_to_them_are_not_sent(folder, name):
    place = folder("classifier")
    table = "\n".join([HEADER, *ROWS]) + "\n"
    (place / name).write_text(table)
    assert published_groups(place) == {name: ["A", "B2", "A - B2"]}
    assert (place / name).read_text() == table


def test_a_table_of_large_groups_is_sent_as_it_is(folder):
    place = folder("classifier")
    table = "\n".join([HEADER, ROWS[2], ROWS[4], ROWS[6]]) + "\n"
    (place / "subgroups.csv").write_text(table)
    with staged(read_contents(place), "org/name") as stage:
        assert (stage / "subgroups.csv").read_text() == table


@pytest.mark.parametrize("header", [HEADER.replace(",n,", ",patients,"), HEADER.replace("group", "name")])
def test_a_table_that_tells_no_number_of_patients_is_refused(folder, header):
    place = folder("classifier")
    (place / "subgroups.csv").write_text("\n".join([header, *ROWS]) + "\n")
    with pytest.raises(RetFoundError, match="does not tell the column, the group and the number of patients"):
        publish(place, "org/name", dry_run=True)


def test_a_card_that_shows_a_small_group_is_refused(folder):
    """Such as one that was written before groups were left out."""
    place = folder("classifier")
    (place / "subgroups.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    publish(place, "org/name", dry_run=True)
    card = place / "README.md"
    text = card.read_text()
    table = "## Evaluation\n\n| by | group | patients | metric | value |\n| --- | --- | ---: | --- | ---: |\n"
    card.write_text(text.replace("## Evaluation\n", f"{table}| camera | B2 | 20 | AUROC | 0.600 |\n", 1))
    publish(place, "org/name", dry_run=True)
    card.write_text(text.replace("## Evaluation\n", f"{table}| patient_id | p017 | 1 | AUROC | 0.900 |\n", 1))
    with pytest.raises(
        RetFoundError, match="shows the group 'p017' of 'patient_id', which has fewer than 10 patients"
    ):
        publish(place, "org/name", dry_run=True)

from retfound_hf.evaluation.metrics import compute_metrics
from retfound_hf.evaluation.report import format_table


def test_overall_first_then_classes_aligned():
    metrics = {
        "auroc": 0.91234, "kappa": None, "auroc/mild/moderate": 0.9, "auroc/no": None,
        "auprc/mild/moderate": 0.5, "auprc/no": 1.0,
    }  # fmt: skip
    assert format_table(metrics).splitlines() == [
        "auroc      0.912",
        "kappa  undefined",
        "",
        "class              AUROC  AUPRC",
        "mild/moderate      0.900  0.500",
        "no             undefined  1.000",
    ]
    assert format_table(metrics, ["no", "mild/moderate"]).splitlines()[4].startswith("no ")


def test_intervals_stand_beside_their_value():
    metrics = {"auroc": 0.9, "auroc_ci95": [0.85, 0.95], "mae": -1.0, "mae_ci95": [None, 2.0]}
    assert format_table(metrics).splitlines() == [
        "auroc       0.900 [0.850, 0.950]",
        "mae    -1.000 [undefined, 2.000]",
    ]


def test_what_compute_metrics_returns(single_label):
    labels, scores = single_label(40, 3)
    metrics = compute_metrics("single_label_classification", labels, scores, list("abc"))
    lines = format_table(metrics, ["a", "b", "c"]).splitlines()
    assert len(lines) == 15 + 2 + 3 and lines[0].split() == ["auroc", f"{metrics['auroc']:.3f}"]
    regression = compute_metrics("regression", labels, labels + 1.0, ["age"])
    assert "class" not in format_table(regression, ["age"])

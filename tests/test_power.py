"""maescreen power: the figures of the planner, for people and for programs."""

import json

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.power import Question, answer, lines


def run(*words):
    return CliRunner().invoke(app, ["power", *words])


def test_the_answer_is_exact_and_complete():
    found = answer(Question(positives=227))
    assert found["positives_to_certify"] == {"0": 59, "1": 93, "2": 124, "3": 153}
    by_size = {row["calibration_positives"]: row for row in found["by_calibration_positives"]}
    assert by_size[200]["test_positives"] == {"0.8": 530, "0.9": 1415}
    assert by_size[500]["expected_referral"] == pytest.approx(0.347, abs=0.002)
    assert by_size[227]["misses_allowed"] == 5
    equal = {row["certified"]: row["positives_in_each"] for row in found["equal_sets"]}
    assert equal[0.97] == {"0.8": 124, "0.9": 153}
    assert found["division"]["best"]["chance"] >= 0.8
    assert found["audited_positives_to_notice"] == {"0.9": 153, "0.85": 42, "0.8": 22}


def test_the_command_prints_a_table_or_json():
    said = run("--positives", "227", "--groups", "3")
    assert said.exit_code == 0
    assert "59 patients with the condition" in said.stdout
    assert "Best division of 227" in said.stdout
    assert "In each of 3 groups" in said.stdout
    found = json.loads(run("--json").stdout)
    assert found["asked"]["recall"] == 0.95
    assert found["division"] is None


def test_too_few_are_called_so_and_never_is_never():
    said = lines(answer(Question(recall=0.99, positives=50)))
    assert any("too few" in line for line in said)
    assert any("cannot be divided" in line for line in said)


@pytest.mark.parametrize("words", [("--recall", "1"), ("--auc", "1"), ("--auc", "0.4"), ("--prevalence", "0")])
def test_shares_that_make_no_sense_are_a_usage_error(words):
    assert run(*words).exit_code == 2

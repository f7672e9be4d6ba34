"""The packaged model's card and the report's: what both say, they say alike."""

from pipeline.store.artifacts import Store
from pipeline.store.files import read_json


def lines(path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line.startswith("- ")]


def test_both_cards_say_the_same_of_the_same_model(finished):
    (package,), (report,) = (Store(finished.store).all(stage) for stage in ("package", "report"))
    inside, beside = lines(package.file("model/MODEL_CARD.md")), lines(report.file("model_card.md"))
    content = read_json(package.file("model/model.json"))
    for head in ("What it judges", "Reference standard", "Model", "Trained on", "People", "User, place", "Not for",
                 "Test patients", "AUC", "Recall, specificity", "Data"):  # fmt: skip
        (own,) = (line for line in inside if line.startswith(f"- **{head}:**"))
        assert own in beside
    # What the packaged model promises stands in both, word for word.
    plain = [line.replace("\\", "") for line in beside]
    assert content["rule"]["usable"]
    for sentence in content["scope"]:
        assert f"- {sentence}" in plain
    trained = content["trained_on"]
    assert f"{trained['patients']} patients, {trained['positives']} with the condition" in " ".join(inside)

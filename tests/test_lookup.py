"""Where the table from pseudonyms back to identifiers is written in a real run: beside the key, or nowhere."""

from collections.abc import Callable
from pathlib import Path

import pytest
from toy import CARD, NAMES, Toy

from pipeline.orchestration.run import run
from pipeline.settings.load import load


class Seeing(Toy):
    """A toy that notes where its stages were told to write the table."""

    lookups: list[Path | None]

    def stage(self, name: str) -> Callable[..., None]:
        work_on = super().stage(name)

        def noting(settings, inputs, work, log) -> None:
            self.lookups.append(inputs.lookup)
            work_on(settings, inputs, work, log)

        return noting


@pytest.mark.parametrize(("identifiers", "name"), [("real", "key.lookup"), ("synthetic", None)])
def test_identifiers_that_are_real_can_be_found_again_beside_the_key(tmp_path, identifiers, name):
    toy = Seeing(tmp_path)
    toy.lookups = []
    (tmp_path / "card.yaml").write_text(CARD.replace("identifiers: synthetic", f"identifiers: {identifiers}"))
    config, card = load(tmp_path / "run.yaml")
    with toy.installed():
        run(config, card, bytes(32), until=NAMES[-1], say=lambda line: None)
    assert toy.lookups == [tmp_path / name if name else None] * len(NAMES)

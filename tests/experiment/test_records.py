import json
from dataclasses import asdict

from prunefuse.experiment.records import Cost, Epoch, Round, round_from_dict


def test_a_round_survives_json() -> None:
    epoch = Epoch(1, "selector", 2, 5, 0.1, 1.25, 0.5, None, 0.75)
    cost = Cost("score_pool", "selector", 1, 20, 1.5e9, 0.25, "note")
    for utilities in (None, (0.75, 0.5)):
        record = Round(1, 22, (7, 3), utilities, 0.875, None, 1, (epoch,), (cost,))
        assert round_from_dict(json.loads(json.dumps(asdict(record)))) == record

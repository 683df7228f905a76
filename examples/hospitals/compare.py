"""What working together is worth: accuracy of each hospital alone, of all together, and of the pooled data.

    python compare.py --original original.csv --hospital hospital-a=a/patients.csv --hospital … [--model model.npz]

It uses the app's own code and settings, and prints one JSON object. Every model is judged on the same patients: those
that the hospitals' own nodes held back for testing. The pooled figure needs all data in one place, which is what the
hospitals do not want: it is here for comparison only, and none of this runs in a consortium.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path

import numpy as np

APP = Path(__file__).resolve().parent / "app"
sys.path.insert(0, str(APP))

from hospitals import task  # noqa: E402 - the app is a folder beside this file, not an installed package


def main():
    """Read the arguments, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--original", type=Path, required=True, help="the whole data set as CSV")
    parser.add_argument("--hospital", action="append", required=True, metavar="NAME=CSV", help="one hospital's part")
    parser.add_argument("--model", type=Path, help="the model that they trained together, as npz")
    parser.add_argument("--rounds", type=int, help="rounds of the training; by default the app's")
    asked = parser.parse_args()
    config = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    parts = {}
    for each in asked.hospital:
        name, _, path = each.partition("=")
        parts[name] = task.load_data(path, config["test-share"], config["seed"])
    features = np.concatenate([part[2] for part in parts.values()])
    labels = np.concatenate([part[3] for part in parts.values()])
    steps = (asked.rounds or config["num-server-rounds"]) * config["local-epochs"]

    def accuracy(arrays):
        return round(task.evaluate(arrays, features, labels)[1], 4)

    def trained(rows, answers):
        return task.train(task.initial_arrays(), rows, answers, steps, config["learning-rate"], config["l2"])[0]

    found = {
        "test_patients": len(labels),
        "alone": {name: accuracy(trained(part[0], part[1])) for name, part in parts.items()},
        "together": None,
        "pooled": accuracy(trained(*pooled(asked.original, features, config))),
    }
    if asked.model:
        with np.load(asked.model, allow_pickle=False) as archive:
            found["together"] = accuracy([archive[name] for name in archive.files])
    print(json.dumps(found))


def pooled(original, tested, config):
    """Return the original data set's features and labels, without the patients that models are judged on."""
    train, train_labels, test, test_labels = task.load_data(original, config["test-share"], config["seed"])
    features, labels = np.concatenate([train, test]), np.concatenate([train_labels, test_labels])
    judged = {row.tobytes() for row in tested}
    kept = np.array([row.tobytes() not in judged for row in features])
    if len(features) - kept.sum() != len(tested):
        raise SystemExit("the hospitals' patients are not those of the original data set")
    return features[kept], labels[kept]


if __name__ == "__main__":
    main()

"""The model and one hospital's data."""

import csv
import functools
from pathlib import Path

import numpy as np

# The ten measures of a cell nucleus; the data has the mean, the standard error and the worst value of each.
MEASURES = ["radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave_points"]
MEASURES += ["symmetry", "fractal_dimension"]
FEATURES = [f"mean_{name}" for name in MEASURES] + [f"{name}_error" for name in MEASURES]
FEATURES += [f"worst_{name}" for name in MEASURES]
LABEL = "diagnosis"

# Typical size and spread of each feature, in that order, as published with the data set: hospitals share no statistics.
CENTRE = [14.13, 19.29, 91.97, 654.9, 0.0964, 0.1043, 0.0888, 0.0489, 0.1812, 0.0628]
CENTRE += [0.4052, 1.217, 2.866, 40.34, 0.00704, 0.0255, 0.0319, 0.0118, 0.0205, 0.0038]
CENTRE += [16.27, 25.68, 107.3, 880.6, 0.1324, 0.2543, 0.2722, 0.1146, 0.2901, 0.0839]
SPREAD = [3.524, 4.301, 24.30, 351.9, 0.0141, 0.0528, 0.0797, 0.0388, 0.0274, 0.0071]
SPREAD += [0.2773, 0.5516, 2.022, 45.49, 0.0030, 0.0179, 0.0302, 0.0062, 0.0083, 0.0026]
SPREAD += [4.833, 6.146, 33.60, 569.4, 0.0228, 0.1573, 0.2086, 0.0657, 0.0619, 0.0181]


def initial_arrays():
    """Weights and bias of a model that knows nothing."""
    return [np.zeros(len(FEATURES), np.float32), np.zeros(1, np.float32)]


@functools.cache
def load_data(path, test_share, seed):
    """Return (train features, train labels, test features, test labels); the split depends on the seed only."""
    with Path(path).open(newline="") as file:
        rows = [{name.replace(" ", "_"): value for name, value in row.items()} for row in csv.DictReader(file)]
    features = np.array([[float(row[name]) for name in FEATURES] for row in rows])
    labels = np.array([float(row[LABEL]) for row in rows])
    features = (features - np.array(CENTRE)) / np.array(SPREAD)
    order = np.random.default_rng(seed).permutation(len(labels))
    cut = max(1, int(len(labels) * test_share))
    test, train = order[:cut], order[cut:]
    return features[train], labels[train], features[test], labels[test]


def train(arrays, features, labels, epochs, learning_rate, l2):
    """Some epochs of full-batch gradient descent; returns the new arrays and the last loss."""
    weights, bias = (array.astype(np.float64) for array in arrays)
    loss = 0.0
    for _ in range(epochs):
        chance, loss = _forward(weights, bias, features, labels)
        error = (chance - labels) / len(labels)
        weights -= learning_rate * (features.T @ error + l2 * weights)
        bias -= learning_rate * error.sum()
    return [weights.astype(np.float32), bias.astype(np.float32)], float(loss)


def evaluate(arrays, features, labels):
    """Return (loss, accuracy)."""
    weights, bias = (array.astype(np.float64) for array in arrays)
    chance, loss = _forward(weights, bias, features, labels)
    return float(loss), float(np.mean((chance > 0.5) == (labels > 0.5)))


def _forward(weights, bias, features, labels):
    score = np.clip(features @ weights + bias, -30, 30)
    chance = 1 / (1 + np.exp(-score))
    loss = -np.mean(labels * np.log(chance) + (1 - labels) * np.log(1 - chance))
    return chance, loss

"""A Flower app: logistic regression over the data of several hospitals."""

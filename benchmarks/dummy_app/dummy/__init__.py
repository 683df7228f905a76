"""A Flower app without training: every node adds one to every parameter."""

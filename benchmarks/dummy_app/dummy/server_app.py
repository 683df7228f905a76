"""Averages, without evaluation."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run `num-server-rounds` rounds over `params` float32 parameters in `layers` arrays."""
    config = context.run_config
    layers = int(config["layers"])
    arrays = [np.zeros(int(config["params"]) // layers, np.float32) for _ in range(layers)]
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(arrays), num_rounds=int(config["num-server-rounds"]))

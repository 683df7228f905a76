"""Averages, without evaluation."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
VALUES = 64


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configured number of rounds from zero."""
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    arrays = ArrayRecord([np.zeros(VALUES, np.float64)])
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(context.run_config["num-server-rounds"]))

"""Averages what comes; or misbehaves itself."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    mode = context.run_config["mode"]
    if mode == "server-raises":
        raise ValueError("row 17 of the patients")
    if mode == "server-silent":
        return
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    arrays = ArrayRecord([np.zeros(100, np.float32)])
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(context.run_config["num-server-rounds"]))

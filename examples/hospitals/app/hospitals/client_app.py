"""One hospital: trains and evaluates on its own rows."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from hospitals import task

app = ClientApp()


def _data(context: Context):
    config = context.run_config
    return task.load_data(context.node_config["dataset.patients"], config["test-share"], config["seed"])


@app.train()
def train(message: Message, context: Context):
    """Train the model that came on this hospital's training rows."""
    config = context.run_config
    features, labels, _, _ = _data(context)
    arrays = message.content["arrays"].to_numpy_ndarrays()
    arrays, loss = task.train(arrays, features, labels, config["local-epochs"], config["learning-rate"], config["l2"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(labels)})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context):
    """Evaluate the model that came on this hospital's test rows."""
    _, _, features, labels = _data(context)
    loss, accuracy = task.evaluate(message.content["arrays"].to_numpy_ndarrays(), features, labels)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(labels)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)

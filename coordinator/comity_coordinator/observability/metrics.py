"""Every metric of the coordinator, declared here and nowhere else; docs/observability.md explains each.

Rules: labels are words of the code or names of members, never ids of work; whoever counts calls a function of a metric.
"""

from __future__ import annotations

from comity.observability.metrics import Book

BOOK = Book("comity_coordinator")
UNKNOWN = "unknown"

# Counted where it happens.
RECEIVED = BOOK.counter("messages_received", "Messages taken from nodes, relayed ones included.", "kind")
SENT = BOOK.counter("messages_sent", "Messages put on streams to nodes, relayed ones included.", "kind")
REFUSED = BOOK.counter("messages_refused", "Messages of nodes that were not taken.", "code")
TRANSACTION_SECONDS = BOOK.histogram(
    "database_transaction_seconds", "Time of a transaction from its first try to its commit."
)
TRANSACTIONS_RETRIED = BOOK.counter("database_retries", "Tries of transactions that failed and were repeated.", "why")
TRANSACTIONS_FAILED = BOOK.counter("database_failures", "Transactions given up: retries spent or out of reach.", "why")
GATE_SECONDS = BOOK.histogram("gate_seconds", "Time of a word of the consortium's bundle on a proposal.", "outcome")
TEMPORAL_FAILURES = BOOK.counter("temporal_failures", "Failures at the workflow engine.", "what")
READ_ERRORS = BOOK.counter("scrape_errors", "Readings of the gauges that failed; the older values stand.")

# Read when somebody asks.
CONNECTED = BOOK.gauge("connected_nodes", "Nodes whose stream is open at this process.")
MEMBERS = BOOK.gauge("members", "Enrolled organisations that are not revoked.")
NODE_UP = BOOK.gauge("node_connected", "1 if the organisation's stream is open at this process.", "org")
SEND_QUEUE = BOOK.gauge("send_queue_frames", "Frames that wait to be written to nodes, of all streams.")
SEND_QUEUE_LONGEST = BOOK.gauge("send_queue_longest_frames", "Frames that wait for the node that has most of them.")
COMMIT_QUEUE = BOOK.gauge("commit_queue_messages", "Durable messages that wait to be committed.")
OUTBOX = BOOK.gauge("outbox_messages", "Durable messages that a node has not acknowledged.", "org")
LEDGER_ENTRIES = BOOK.gauge("ledger_entries", "Entries under the newest checkpoint.")
LEDGER_PENDING = BOOK.gauge("ledger_pending", "Statements that have no place in the ledger yet.")
SEQUENCER_LAG = BOOK.gauge("ledger_sequencer_lag_seconds", "Age of the oldest statement that has no place yet.")
CHECKPOINT_AGE = BOOK.gauge("ledger_checkpoint_age_seconds", "Age of the newest checkpoint.")
COSIGNATURE_LAG = BOOK.gauge(
    "ledger_cosignature_lag_seconds", "For how long witnesses have been asked and nothing became final."
)
NEGOTIATIONS = BOOK.gauge("negotiations", "Negotiations by phase.", "phase")
RUNS = BOOK.gauge("runs", "Runs by state, closed ones included.", "state")
RUNS_OPEN = BOOK.gauge("runs_open", "Runs that are not closed.")
PAYLOAD_BYTES = BOOK.gauge("payload_bytes", "Sealed payloads in the spool.")
PAYLOAD_LIMIT_BYTES = BOOK.gauge("payload_limit_bytes", "What the spool may hold at most.")
DISK_FREE_BYTES = BOOK.gauge("payload_disk_free_bytes", "Room on the spool's disk.")
TEMPORAL_UP = BOOK.gauge("temporal_connected", "1 while the worker is connected to the workflow engine.")

"""Every metric of a node, declared here and nowhere else; docs/observability.md explains each.

Rules: labels are words of the code, never ids of work, names of data or of people; whoever counts calls a function of a
metric. What a policy answered is counted, never what it was asked.
"""

from __future__ import annotations

from comity.observability.metrics import Book

BOOK = Book("comity_node")

# Counted where it happens.
RECEIVED = BOOK.counter("messages_received", "Messages taken in from the coordinator and from others.", "kind")
SENT = BOOK.counter("messages_sent", "Messages given to the stream or to the outbox.", "kind")
REFUSED = BOOK.counter("messages_refused", "Messages of ours that the coordinator did not take.", "code")
FAILED = BOOK.counter("messages_failed", "Handlings of messages that failed unexpectedly.", "kind")
RECONNECTIONS = BOOK.counter("link_connections", "Times that the stream to the coordinator was opened.")
DECISIONS = BOOK.counter("decisions", "Decisions by stage and outcome.", "stage", "outcome")
DECISION_SECONDS = BOOK.histogram("decision_seconds", "Time of a decision, both bundles and its record.", "stage")
POLICY_ERRORS = BOOK.counter("policy_errors", "Decisions that are denials because an engine gave no answer.", "code")
ORDERS = BOOK.counter("orders", "Orders served here, by how they ended.", "outcome", "code")
SPENT = BOOK.counter("grants_spent", "What orders have taken of the grants of agreements.", "field")
ROUNDS = BOOK.counter("rounds_led", "Questions that apps have put to parties while this node leads.")
READ_ERRORS = BOOK.counter("scrape_errors", "Readings of the gauges that failed; the older values stand.")

# Read when somebody asks.
CONNECTED = BOOK.gauge("connected", "1 while the stream to the coordinator is open.")
OTHERS = BOOK.gauge("others_connected", "Other organisations whose stream is open.")
OUTBOX = BOOK.gauge("outbox_messages", "Durable messages that the coordinator has not acknowledged.")
UNTAKEN = BOOK.gauge("messages_untaken", "Messages kept because no handler could take them.")
REVIEWS_OPEN = BOOK.gauge("reviews_open", "Questions that wait for people of this organisation.")
NEGOTIATIONS_PENDING = BOOK.gauge("proposals_pending", "Proposals and agreements that could not be judged yet.")
RUNS = BOOK.gauge("runs", "Runs by state, closed ones included.", "state")
RUNS_OPEN = BOOK.gauge("runs_open", "Runs that are not closed.")
RECEIPTS_UNSENT = BOOK.gauge("receipts_unsent", "Receipts that were not handed to the outbox yet.")
LEDGER_SEEN = BOOK.gauge("ledger_size_seen", "Size of the largest checkpoint that this node has checked.")
INCIDENTS = BOOK.gauge("incidents_open", "Incidents that this node saw and nobody has acknowledged.")
PAYLOAD_BYTES = BOOK.gauge("payload_bytes", "Sealed payloads on this node's disk.")
PAYLOAD_LIMIT_BYTES = BOOK.gauge("payload_limit_bytes", "What they may take at most.")
DISK_FREE_BYTES = BOOK.gauge("payload_disk_free_bytes", "Room on that disk.")
CIRCUIT_OPEN = BOOK.gauge("policy_circuit_open", "1 while an OPA server has failed so often that it is not asked.")

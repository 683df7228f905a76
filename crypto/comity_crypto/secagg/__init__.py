"""Secure aggregation: sums of updates that nobody can open alone (secure-aggregation.md).

Five chapters. Each profile's own head tells its sequence, what holds, and what does not.

    frame       what every round has: messages with one strict reader, the transcript, the frame of the machines, blobs,
                boxes, replies as integers and back
    lead_key    profile `lead-key`: encrypted uploads, under a key that the lead alone holds
    masked      profile `masked`: vectors of uint32 under masks alone; parties may drop out
    threshold   profile `threshold`: the round of `lead_key`, under a key that the parties made; a quorum opens the sum
    bfv         the arithmetic of encrypted sums: parameter sets, residues, TenSEAL, the pool of worker processes

    spoken      all messages on the wire, for who relays them
    worker_main the worker process: `python -m comity_crypto.secagg.worker_main`

A chapter knows `frame` (and `threshold` the `lead_key` that it builds on), never another profile; `frame` knows none.

The machines are pure. `start(...)` returns a state and the first outputs, `step(state, event, now)` the next state and
outputs; perform these in order; wake up at `state.deadline` with `Tick()`. `now` is any monotonic clock in seconds.
`step` raises `ComityError` for an event that it refuses: log it, keep the old state. `frame.driver` does all this.

    "Signed" is a statement of the sender's organisation with `kind = message.KIND`, `body = message.to_json()`. The
    caller verifies it and hands over `Received(issuer, parse_spoken(kind, body))`. The coordinator's two messages have
    no signature: hand them over as `RosterProposed` and `AggregatePublished`, from the coordinator's stream only.
    A job that raises goes back as `WorkFailed(error)`. All blobs of a round (uploads, aggregate) have exactly
    `offer.upload_bytes`: reserve and refuse by that.

This package imports TenSEAL in worker processes only; importing it is cheap.
"""

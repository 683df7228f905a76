"""Profile `lead-key`: a sum that only the lead can open, of parts that nobody can open.

Design: secure-aggregation.md sections 1 to 4 and 6. Each contribution is masked pairwise modulo t, then encrypted with
TenSEAL's BFV under a key that the lead makes for one attempt at one round. The coordinator adds ciphertexts and has no
key. The lead, who can decrypt, sees uniform noise in every single upload; only the sum of the whole roster comes out.

What holds, and what does not
    1. Coordinator alone: learns sizes, times and digests. Lead with coordinator and all but two contributors: nothing
       about either of the two beyond their sum. A roster has 3 to 50 members.
    2. A wrong sum is refused (linear digests, check slots), not repaired; a contributor that lies about its own values
       within the range is not noticed (clipping is its own node's duty).
    3. No dropouts: a missing party voids the key and restarts the session. Before anything has left, with the rest;
       after that, only with the same roster and the same integers (`Release`), else two sums would differ by one
       update.

    messages, events, transcript    what encrypted sums add to the frame
    contributor, aggregator, holder the machines of a party, of the coordinator, of the lead
    watcher                         what all do who look on, and check the aggregate

The sequence (`ALL` = all contributors, the lead's holder, the coordinator's aggregator)

    lead                      coordinator                     each contributor (the lead's own, too)
     | make_key, Offer           |                               |
     |-- order: Offer + public key, sealed to each party ------->| judges offer against agreement, order, size
     |-- Offer ----------------->|                               |
     |                           |<-- (a) Ready ---------------- | to ALL; signed; round key, order digest, box key
     |                           |--- Roster ------------------->| to ALL; unsigned
     |                           |<-- (b) RosterSignature ------ | to ALL; signed; at most one per round key
     |                           |<-- (c) MaskSeed ------------- | to ALL; signed; boxes for those who sort after
     |                           |                               | masks, encrypts (once its values are there)
     |                           |<-- (c) Commitment ----------- | to ALL; signed; hash of the upload
     |                           |<-- (d) CommitmentsSignature - | to ALL; signed; the whole set
     |                           |<== upload =================== | after the journal holds the Release
     |<-- (e) AggregateNotice ---|--- AggregateNotice ---------->| to ALL; unsigned; fixes the challenge
     |<== aggregate =============|                               |
     |<-- (e) LinearDigest --------------------------------------| to the lead; signed; names the notice it saw
     | sum of digests = digest of the aggregate -> decrypt, decode, erase the key
     |-- (Abort: by anyone, at any time, to ALL; signed. Then the Offer of the next attempt, under a fresh key.)

What a shell does

    lead node
        key = await workers.make_key(AGG_Q16)                # workers: one BfvWorkers for the whole node
        offer = Offer(agreement, run, step, round, attempt=0, lead, parties (sorted), minimum, key.key_id, order_digest,
                      AGG_Q16.name, AGG_Q16.digest, Layout.of(x_arrays, numbers).chunks)
        state, _ = holder.start(offer, now=now)              # before the order leaves
        StartDigest  -> download the aggregate into a file
                        values = await workers.check_and_digest(AGG_Q16, offer.chunks, challenge, digest, fd)
                        event DigestReady(values)
        StartDecrypt -> sums = await workers.decrypt(AGG_Q16, offer.chunks, key.secret, fd)
                        decoded = encoder.decode(sums, contributors, x_arrays, value_range, numbers=...)
                        event SumDecoded()
        EraseKey     -> key.secret.erase()
        Failed       -> offer = holder.next_offer(offer, new_key.key_id, without); start again. `missing` names who was
                        awaited or gave up; leave somebody out only if it is gone, not if it merely had to begin anew.
        Every participant's reply to the app is then `decoded.arrays` (one shared buffer) with the same weight, and
        `decoded.weight * weight_max` is the number of examples of all.

    contributor node
        # the caller has checked: issuer of the offer = lead of the agreement, parties within the agreement's, attempt
        contributor.check_public_key(offer, public_key)
        state, outputs = contributor.start(
            me, offer, order_digest=own digest of the plaintext order, chunks=own Layout's, box_key=BoxKey(),
            entropy=os.urandom, now=now, previous=journalled Release of this agreement and order or None,
            used_keys=key ids of this run so far)
        after training: encoded = encoder.encode(x, y, weight_of(...), clip, range, rounding_key(...),
                        numbers=...); event ValuesReady(encoded.digest). It may come at any time after `start`,
                        so that the rounds of signatures overlap with training.
        StartEncrypt  -> blob = await workers.encrypt(AGG_Q16, public_key, encoded.slots, pairs, fd of a new file 0600)
                         fsync; event blob
        RecordRelease -> journal, synced, before the next output
        StartUpload   -> send the file, again and again if need be, never another one for this session
        StartDigest   -> values = await workers.digest(AGG_Q16, BlobKind.UPLOAD, offer.chunks, challenge, fd)
                         event DigestReady(values)
        Messages may overtake the order: keep those of an unknown session (bounded) until its offer is here.
        A node that died during a session lost its box key: it sends `Abort` for the session and awaits the next offer.

    coordinator
        state, _ = aggregator.start(offer, now=now)          # the lead's signed Offer, without the key
        relays every statement of the session to its audience, and steps its own machine with it
        a finished upload (digest and size computed by the spool) -> event UploadStored(org, digest, size)
        StartAdd -> event await workers.add(parameters, offer.chunks, [fd of each of orgs], fd of a new file)
        Send     -> Roster, AggregateNotice: to ALL, unsigned. Failed -> tell the parties; `awaited(state)` for status.
"""

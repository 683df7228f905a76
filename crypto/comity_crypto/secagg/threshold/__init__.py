"""Profile `threshold`: the round's key is the parties' own, and a quorum T of them opens the sum.

1. A ceremony makes a batch of keys ahead of time: the secret is the sum of parts that never leave their holders; where
   T < n, parts are dealt as shares (`keys`). A key is usable when every holder has signed the whole transcript.
2. The round is that of `lead_key`, with masks around every upload all the same; linear digests go to all, for every
   holder checks the aggregate before it shares anything of it.
3. Shares are smudged and sealed to those who open the sum (`shares`): the lead, and whom the offer names beside it.
   Each of them opens for itself, and they compare what they saw (`opener`, `compared`). Where shares do not open the
   sum, other quorums tell whose are wrong (`blame`); at T = n nobody can tell.
4. Every key serves once, and is erased when the sum is open, or the session over.

    messages, events            what ceremony and quorum add to `lead_key`
    ceremony, keyholder         the machines of a holder in a ceremony and in a round
    lead, opener                the machines of the lead, and of another opener of the sum
    compared                    what openers say of the sum that they saw
    keys, shares, boxes         a collective key, decryption shares, dealt parts under way
    jobs, workers               the same in worker processes
    batch, blame                a finished ceremony; which quorum to ask next

The sequence (`ALL` = all holders; contributors as in `lead_key`)

    lead                      coordinator                     each holder (the lead's own, too)
     |-- KeyPlan --------------->|------------------------------>|
     |                           |<-- NonceCommitment ---------- | to ALL; with its key for boxes
     |                           |<-- NonceReveal -------------- | to ALL; after every commitment: all nonces give `a`
     |                           |<-- ShareCommitment ---------- | to ALL; hash of its public shares of all keys
     |                           |<-- ShareReveal -------------- | to ALL; the shares' sum is the public key
     |                           |<-- Deal, DealCheck ---------- | to ALL; where T < n
     |                           |<-- TranscriptSignature ------ | to ALL
     |-- ThresholdOffer -------->| ... the round of `lead_key`, up to the linear digests, to ALL ...
     |<-- Checked -----------------------------------------------| to the lead; the aggregate is the sum of the uploads
     |-- QuorumCall ------------>|------------------------------>| to ALL; at most 8 in a session
     |<-- ShareReady, share -------------------------------------| to the openers, sealed; once for each call
     |-- Opened ---------------->|------------------------------>| to ALL; erase
     |<-- SumSeen -----------------------------------------------| openers to each other; nobody waits for it
"""

"""Profile `masked`: a sum of vectors of uint32 under masks alone, opened by the lead; parties may drop out.

    messages, events, transcript   what masked sums add to the frame
    contributor, adder, recipient  the machines of a party, of the coordinator, of the lead
    keys, shamir, dealing          a party's secrets, what it deals, opens and reveals
    opening                        the masks that are left in a sum
    words, encoder, blobs          vectors, replies as vectors, files

The sequence (`ALL` = all contributors, the lead's recipient, the coordinator's adder)

    lead                      coordinator                     each contributor (the lead's own, too)
     |-- MaskedOffer ----------->|------------------------------>| judges it against agreement, order, size
     |                           |<-- (a) MaskedReady ---------- | to ALL; round's secret by name, order, keys for boxes
     |                           |--- Roster ------------------->| to ALL; unsigned
     |                           |<-- (b) RosterSignature ------ | to ALL; at most one per round's secret
     |-- (c) RoundBoxes -------->|------------------------------>| to ALL; the round's secret, sealed to each member
     |                           |<-- (c) MaskedKeys ----------- | to ALL; sealed seeds of pairs, sealed shares
     |                           |                               | tag and masks over the values, once they are there
     |                           |<-- (c) Commitment ----------- | to ALL; hash of the upload
     |                           |<-- (d) CommitmentsSignature - | to ALL; the whole set
     |                           |<== upload =================== | after the journal holds the Release
     |<-- (e) MaskedNotice ------|--- MaskedNotice ------------->| to ALL; unsigned: who dropped out, the aggregate
     |                           |<-- (e) NoticeSignature ------ | to ALL; after the journal holds the Stand
     |                           |      signed by `needed` members, more than two thirds of the roster:
     |<-- (e) Reveal --------------------------------------------| to the lead, sealed; after the order's end is on disk
     |<== aggregate =============|                               |
     | masks taken away, check words and tag judged, decoded

What holds. With k to spare and n members, of which c are dishonest together with lead and coordinator:
    - c <= n - k - 1 that follow the protocol learn nothing of the others' updates beyond their sum;
    - c <= n - 2 k - 1 (at most n - 2) that do anything learn no more either: two lists need 2 (n - k) signatures, the
      honest sign one each, and so for every party one kind of share at most finds its quorum.
  So k = 0 holds against any n - 2, and nobody may be lost; each party to spare costs two that may be dishonest. The
  coordinator alone learns sizes, times and digests, neither updates nor their sum; with a contributor, who knows the
  round's secret, it still lacks the own masks' seeds, which are sealed to the lead.
  A contributor that lies about its own values within the range is not noticed.
"""

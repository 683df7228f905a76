"""What the rounds of all profiles have in common. From the bytes of a stranger to the machine that acts on them:

    body         one strict reader for each field of a message
    messages     steps (a) to (d): what all profiles say                  boxes     sealed secrets (HPKE)
    record       who said what, once                                      naming    whose fault a refusal is
    transcript   the stages of a round: ready, roster signed, committed, set signed, published
    events       what goes into machines and comes out
    machine      the frame of every machine: refuse, absorb, turn, wait, fail
    contributor  a contributor's turns up to the upload                   adder     the coordinator's machine
    replies      replies as integers, summed integers as a mean           blobs     uploads and aggregates as files
    driver       a machine at work: events, jobs, clock

A profile adds messages, stages and turns. A turn is a function of the state: it returns what follows (the next phase
and outputs), a `Failed` that ends the session, or nothing: it waits.
"""

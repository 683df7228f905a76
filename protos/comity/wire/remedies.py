"""What to do about each error: one sentence for whoever has the move, with the next command where there is one.

The catalogue says whose move it is; this says which. `docs/errors.md` and the `comity` command print both.
`tests/unit/docs` proves that every code has a remedy and that every command named here exists.
"""

from __future__ import annotations

from comity.wire.errors import ErrorCode as E

REMEDIES: dict[E, str] = {
    E.MALFORMED: "Correct what the detail names; `--help` of the command shows the form.",
    E.TOO_LARGE: "Stay below the limit that the facts name.",
    E.UNSUPPORTED: "Leave out what the detail names; docs/governance.md lists what is enforced.",
    E.UNAUTHENTICATED: "Log in (`comity login`), or be the node's user; a new api.token needs a restart.",
    E.FORBIDDEN: "Use credentials that permit it; `comity access me` shows your roles at your node.",
    E.TOKEN_INVALID: "Copy the whole token, one line; else ask the sponsor to run `comity invite ORG` again.",
    E.TOKEN_EXPIRED: "The sponsor runs `comity invite ORG` again (for the first member: `comity coordinator token`).",
    E.TOKEN_USED: "The sponsor runs `comity invite ORG` again (for the first member: `comity coordinator token`).",
    E.NOT_A_MEMBER: "Compare with `comity genesis show`: only an organisation under the signed charter takes part.",
    E.ALREADY_A_MEMBER: "Nothing to do if it was you; else tell the sponsor: the id is taken.",
    E.REVOKED: "Talk to the operator. There is no way back under the same id yet.",
    E.SUSPENDED: "Ask the other members why; any of them may propose `comity charter propose --reinstate ORG`.",
    E.CERTIFICATE_INVALID: "Run `comity node rotate`; `comity doctor` shows the certificate's dates and the clock.",
    E.SIGNATURE_INVALID: "Nothing was taken. Sign with the keys that the charter in force names.",
    E.POSSESSION_UNPROVEN: "Join with keys that this node made itself: `comity node join` in an empty folder.",
    E.GENESIS_MISMATCH: "Ask a member for the digest by telephone. If it still differs, stop: another consortium.",
    E.CHARTER_INVALID: "Sign nothing. Compare `comity genesis show` with the other members.",
    E.QUORUM_MISSING: "Wait until every party has signed; `comity status` names who is awaited.",
    E.KEY_UNREADABLE: "Run `comity doctor`: it names the file, and the mode or owner that it needs.",
    E.NOT_FOUND: (
        "List what there is: `comity proposals list`, `comity runs list`, `comity review list`, `comity charter list`."
    ),
    E.ILLEGAL_EVENT: "Look at the present state: `comity status`, `comity proposals show PROPOSAL`.",
    E.TERMS_CONFLICT: "Propose anew without the clash that the detail names, or leave that organisation out.",
    E.TERMS_TOO_WEAK: "Propose anew with the stricter term that the detail names.",
    E.DEADLINE_PASSED: "Propose anew, with a longer `--deadline`.",
    E.AGREEMENT_UNKNOWN: "Compare the digest with `comity proposals list`.",
    E.AGREEMENT_INVALID: "Nothing was signed. Propose anew; if it happens again, verify the ledger.",
    E.WITHDRAWN: "Ask the party that withdrew for its reason (`comity proposals show PROPOSAL`), then propose anew.",
    E.SUPERSEDED: "Look at the newer revision: `comity proposals show PROPOSAL`.",
    E.POLICY_DENIED: "Propose what the named rule permits, or ask that organisation to change its policy.",
    E.POLICY_UNDEFINED: "Run `comity policy eval` with the input: no rule gives an answer.",
    E.POLICY_ERROR: "Run `comity policy lint` and `comity policy test`.",
    E.POLICY_UNAVAILABLE: "Start the OPA server that node.json names, or set engine there to embedded and restart.",
    E.POLICY_TIMEOUT: "Make the slow rule cheaper, or take load from the machine.",
    E.BUNDLE_INVALID: "Correct the file and line that the detail names; `comity policy lint` checks again.",
    E.BUNDLE_STALE: "Get the consortium's bundle from a member and run `comity policy adopt FILE`.",
    E.REVIEW_NEEDED: "Wait until the named instant: its people decide with `comity review approve` or `deny`.",
    E.REVIEW_DENIED: "Read the reason, ask that organisation's people, then propose anew.",
    E.ORDER_NOT_LEAD: "Send orders from the lead that the agreement names.",
    E.ORDER_MISMATCH: "Let the app ask what was agreed: the fact names the field.",
    E.ORDER_REPLAYED: "Nothing was run twice. The lead gives each order its own number.",
    E.GRANT_EXHAUSTED: "Propose anew: the fact names what is used up.",
    E.GRANT_EXPIRED: "Propose anew.",
    E.COORDINATOR_CHANGED: "Propose it again at the new coordinator; open proposals are submitted again by themselves.",
    E.JOURNAL_BEHIND: "Run `comity node recover` after restoring a backup.",
    E.JOURNAL_UNWRITABLE: "Free disk space or make the folder writable; the node goes on by itself.",
    E.CHECKPOINT_STALE: (
        "`comity ledger show` names who did not cosign: ask them, and the operator why the ledger stands still."
    ),
    E.NOT_FINAL: "Nothing, for a moment. If it lasts, `comity ledger show` names the witnesses that are awaited.",
    E.PAYLOAD_MISSING: "Wait: its sender keeps it and sends it again.",
    E.PAYLOAD_DIGEST: "Nothing was used. It is sent again; if it happens again, look at disk and network.",
    E.PAYLOAD_TRUNCATED: "Nothing was used. It is sent again from the byte that is missing.",
    E.SEAL_BROKEN: "Nothing was used. It is not sealed to this organisation's keys, or was changed on the way.",
    E.SPOOL_FULL: "The operator frees disk or raises spool_total_bytes; senders try again.",
    E.APP_INVALID: "Correct the app: `comity app digest ./app` says what is wrong with it.",
    E.APP_FAILED: "Ask the named organisation's admin for the node's log, or run the app on a sample at home.",
    E.APP_SILENT: "Let the app return a message for every message.",
    E.DATASET_MISSING: "That organisation's admin runs `comity datasets add NAME FILE`.",
    E.DATASET_COLUMNS: "Ask for columns that exist (`--column`), or correct the file and add it with `--replace`.",
    E.ISOLATION_TOO_WEAK: "Install bubblewrap there and restart the node; `comity doctor` shows what it offers.",
    E.WORKER_DIED: "Nothing: the order is run again. If it dies again, raise worker_memory_bytes in node.json.",
    E.WORKER_TIMEOUT: "Let a round do less work; the facts name the limit.",
    E.REPLY_SHAPE: "Let the app return arrays of the same shapes that it was sent.",
    E.REPLY_TOO_LARGE: "Let the app return less, or ask the admin to raise reply_bytes_max in node.json.",
    E.EGRESS_DENIED: "Return what the named rule lets out, or ask that organisation to change its policy.",
    E.RUN_DIVERGED: "Make the ServerApp deterministic (fixed seeds, no clock), then propose anew.",
    E.RUN_FAILED: "Run `comity runs watch RUN`: the last event names who and why. Then propose anew.",
    E.RUN_CANCELLED: "Ask who withdrew (`comity proposals list`), then propose anew.",
    E.PARTICIPANTS_TOO_FEW: "Wait for the missing organisation, or propose to more of them.",
    E.STRATEGY_REFUSED: "Use a strategy that needs only the average, or propose `--aggregation plain`.",
    E.ROSTER_MISMATCH: "Nothing: the round is tried again.",
    E.CIPHERTEXT_INVALID: "Nothing was added. The named organisation's node has to be looked at.",
    E.SUM_MISMATCH: "Nothing was used. Ask the operator: the coordinator added wrongly.",
    E.BAD_SHARE: "Nothing was opened. The named organisation's node has to be looked at.",
    E.SUMS_DIFFER: "Stop the run and compare the named organisations' receipts: one of them says what it did not see.",
    E.PROOF_INVALID: "Keep the file. Ask the operator, and compare exports with the other members.",
    E.LEDGER_INVALID: "Keep the file. Ask the operator, and compare exports with the other members.",
    E.BACKUP_INVALID: "Nothing was restored. Take another copy of it, or the backup before it (docs/disaster.md).",
    E.CLAIM_UNPROVEN: "Do not rely on what was claimed. The organisation's node has to be looked at.",
    E.ATTESTATION_INVALID: "Compare measurement, policy and roots with what the organisation announced.",
    E.ATTESTATION_MISSING: "The party named starts its node in a confidential machine and sets `attestation` "
    "(docs/attestation.md), or the term is dropped.",
    E.ATTESTATION_STALE: "Nothing: the lead asks again. If it lasts, the party named looks at its node's log.",
    E.UNAVAILABLE: "Start it if it is yours (`comity node up`); `comity doctor` says what cannot be reached.",
    E.BUSY: "Try again in a moment.",
    E.TIMEOUT: "Try again; `comity status` says what is still open.",
    E.CONFLICT: "Choose another name or folder, or say `--replace` where the command has it.",
    E.INTERNAL: "Look into the log of the process that says so, and report it.",
}


def remedy(code: E) -> str:
    """Return what to do about `code`."""
    return REMEDIES[code]

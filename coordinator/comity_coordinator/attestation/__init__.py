"""Evidence of confidential hardware on its way between parties, and onto the ledger (docs/attestation.md)."""

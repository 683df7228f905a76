"""Evidence of confidential hardware: gather our own, check everybody else's (docs/attestation.md)."""

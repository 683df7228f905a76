"""Attestation evidence, verified offline: SEV-SNP reports (`snp`), SGX and TDX quotes (`quotes`).

`judging` is the one judgement over both. Verification only: nothing here makes evidence, and nothing here fetches
certificates or collateral. Nothing is imported here: `quotes` needs the optional library dcap-qvl. Source:
secure-aggregation.md, docs/proofs.md, docs/attestation.md.
"""

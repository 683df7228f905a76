"""Identity, signatures, sealing, quorum certificates, log mathematics and secure aggregation.

Nothing is imported here: an idle node pays only for the modules that it uses.
"""

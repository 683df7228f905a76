"""Private set intersection between two parties on an elliptic curve (docs/intersection.md).

`identifiers` (what is compared), `messages` (what crosses), `matching` (what is learned) are pure; `workers` does the
curve's arithmetic with `openmined-psi` in processes of their own. Nothing is imported here.
"""

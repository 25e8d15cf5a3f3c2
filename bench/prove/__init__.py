"""Proof that the numbers are right: each module measures something whose answer is known from elsewhere.

`python -m prove` (with `bench` on the path; `make prove`) runs every proof of `PROOFS` at full scale and writes
docs/method.md anew; `python -m prove queueing stall` runs those that are named. To add one, write a module with a
function `prove(scale: Scale) -> Proof` and put its name here.
"""

from __future__ import annotations

PROOFS = ("queueing", "ledger", "delay", "stall", "turns", "compared", "aa")  # in the order in which the page has them

"""What probes find that reports look for: who only reads them imports no client of any broker."""

OWN, SHARE = "confirms after a flush of their own", "flushes per confirm"
LOST, TWICE = "never processed", "processed more than once"
AGED, SIZED = "taken away by age", "taken away by size"

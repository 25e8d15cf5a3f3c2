"""Is a run good enough, and no worse than one before? Limits, baselines, and what CI reads of them.

Reads runs on disk and never a broker. `metrics` says what can be limited, `limits` what a file of limits says,
`judging` holds runs against it, `baselines` keeps the runs that others are held against, `formats` writes what CI
reads, `checking` is all of it in one go.
"""

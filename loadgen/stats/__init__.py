"""Statistics alone: arrays in, small frozen results out; no files, no brokers, no clocks."""

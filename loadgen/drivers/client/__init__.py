"""Client drivers: what an application gets from the usual libraries."""

"""Wire drivers: whole batches made and parsed by numpy on plain sockets, what the broker can do."""

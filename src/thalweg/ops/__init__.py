"""Sequence ops on packed runs. Each file holds one op: sequential reference, chunkwise version, dispatcher."""

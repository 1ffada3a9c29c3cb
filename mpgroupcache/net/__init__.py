"""Peers: the ring, the messages and the wire between hosts, as golang/groupcache has them.

- What they say to each other: `peerwire`, with `groupcachepb_pb2`, `ages` and `batches`; `tls` around it.
- Who owns a key: `consistenthash`; `ring`, of which `membership` knows the members by their `urls`.
- To ask: `peer`, which is a `client` or a `transportclient`. An `exchange` goes out on a connection, or through a
  `transport`, and ends in one of the `outcomes`, or for many keys `together` in one for each; a `breaker` spares a dead
  peer; `promotion` picks what stays here.
- To be asked: the `server` on its `addresses`, by clients within its `serverlimits`. A `serverconnection` finds
  `requests`, the `handler` answers them with `responses` from the `backend`, at once or after `visits`, and an `outbox`
  holds what TLS would hide.
- `hooks`: what an application may put in.
"""
